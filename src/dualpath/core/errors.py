"""Errors by whose fault they are. Every message names the mend where there is one."""


class DualPathError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(DualPathError):
    """The operator's input is wrong (flag, file, model, folder, port). The CLI prints it and exits with code 2."""


class RequestError(DualPathError):
    """The client's request is wrong. The gateway answers 4xx in OpenAI's error shape."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


class ServiceError(DualPathError):
    """The cluster could not serve a right request (no engines, deadline, lost scheduler). The gateway answers 5xx."""


class ProtocolError(DualPathError):
    """The other side sent what the protocol does not allow; its connection is closed."""


class StoreError(DualPathError):
    """Base of storage errors."""


class BlockMissing(StoreError):
    """The store has no block under this key: the hint was wrong, recompute."""


class BlockCorrupt(StoreError):
    """The stored object is not a valid block under this key (checksum, length, key, layout, format version)."""


class StoreUnavailable(StoreError):
    """The store did not answer or could not take the block (I/O error, full, permission, deadline)."""


class TransferError(DualPathError):
    """A transfer between nodes failed: connection lost, deadline, or refused by the other side."""


class GrantExpired(TransferError):
    """The remote slot no longer belongs to the grant that the transfer names; nothing was moved."""
