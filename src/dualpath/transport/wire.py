"""Frames of the transfer protocol, pure: a header, then a MessagePack body of bounded size. Payload is not
framed.

One transfer is under way on a connection at a time. The caller sends a TransferRequest; the server answers
with a TransferReply. What follows an OK (bytes over TCP, permission to copy over shared memory) is the
transport's own.
"""

import enum
import struct
from collections.abc import Sequence
from typing import Annotated

import msgspec

from dualpath.core.errors import GrantExpired, ProtocolError, TransferError
from dualpath.transport.base import Lane, Range

MAGIC = b"DPT1"  # the last character is the protocol's version
HEADER = struct.Struct("<4sI")  # magic, bytes of the body
MAX_BODY_BYTES = 1 << 20
MAX_RANGES = 16_384  # fit MAX_BODY_BYTES with room to spare
MAX_TRANSFER_BYTES = 1 << 40


class Operation(enum.IntEnum):
    """What the caller wants of the server's region."""

    FETCH = 0
    PUSH = 1


class Status(enum.IntEnum):
    """How the server answers. All but OK leave the region untouched and the connection usable."""

    OK = 0
    GRANT_EXPIRED = 1
    REFUSED = 2  # unknown region or ranges outside of it; the message says which


class TransferRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Asks to move the region's ranges to the caller (FETCH) or from the caller (PUSH)."""

    operation: Operation
    lane: Lane
    region: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    grant: int
    ranges: Annotated[tuple[Range, ...], msgspec.Meta(min_length=1, max_length=MAX_RANGES)]
    mapped: int = 0  # identity of the region that the caller has mapped under this name; 0 = none

    @property
    def total_bytes(self) -> int:
        """Bytes of all ranges."""
        return total_bytes(self.ranges)


class TransferReply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The server's answer; `identity` names the registration of the region (it changes when a peer
    restarts).
    """

    status: Status
    message: str = ""
    identity: int = 0

    @classmethod
    def refusal(cls, error: TransferError) -> "TransferReply":
        """The reply that makes the caller see this error."""
        status = Status.GRANT_EXPIRED if isinstance(error, GrantExpired) else Status.REFUSED
        return cls(status, str(error))

    def check(self) -> None:
        """Raise what the caller of the transfer shall see."""
        if self.status is Status.GRANT_EXPIRED:
            raise GrantExpired(self.message)
        if self.status is not Status.OK:
            raise TransferError(self.message)


def total_bytes(ranges: Sequence[Range]) -> int:
    """Bytes of all ranges."""
    return sum(r.length for r in ranges)


def encode(message: TransferRequest | TransferReply) -> bytes:
    """The body of a message."""
    return msgspec.msgpack.encode(message)


def frame(body: bytes) -> bytes:
    """Header and body; ValueError when the body is larger than any receiver takes."""
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"a message of {len(body)} bytes; at most {MAX_BODY_BYTES}")
    return HEADER.pack(MAGIC, len(body)) + body


def body_bytes(header: bytes) -> int:
    """Length of the body that follows a header; ProtocolError for a foreign header or a body that is too
    large.
    """
    magic, length = HEADER.unpack(header)
    if magic != MAGIC:
        raise ProtocolError(f"frame begins with {magic!r}, not {MAGIC!r}: another protocol or version")
    if length > MAX_BODY_BYTES:
        raise ProtocolError(f"frame of {length} bytes; at most {MAX_BODY_BYTES}")
    return int(length)


_REQUESTS = msgspec.msgpack.Decoder(TransferRequest)
_REPLIES = msgspec.msgpack.Decoder(TransferReply)


def decode_request(body: bytes) -> TransferRequest:
    """Inverse of encode; ProtocolError for anything that is not a well-formed request of bounded size."""
    try:
        request = _REQUESTS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a transfer request: {error}") from None
    if any(r.offset < 0 or r.length < 1 for r in request.ranges) or request.total_bytes > MAX_TRANSFER_BYTES:
        raise ProtocolError("a transfer request with ranges that cannot be")
    return request


def decode_reply(body: bytes) -> TransferReply:
    """Inverse of encode; ProtocolError for anything else."""
    try:
        return _REPLIES.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a transfer reply: {error}") from None
