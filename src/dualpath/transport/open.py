"""Transports by name, as flags and configuration files give them."""

from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.transport.auto import AutoTransport
from dualpath.transport.base import Transport
from dualpath.transport.nic import NicPair
from dualpath.transport.shm import ShmTransport
from dualpath.transport.tcp import TcpTransport


def open_transport(
    kind: str = "auto",
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    socket_dir: Path | None = None,
    nics: NicPair | None = None,
    deadline_s: float = 30,
    key: bytes | None = None,
) -> Transport:
    """An endpoint, not yet started: "tcp" or "nixl" on host and port, "shm" in socket_dir, or "auto", which is all that
    this host has. ConfigError for other kinds, and for one that this host does not have.
    """
    if kind == "auto":
        return AutoTransport(host, port, socket_dir=socket_dir, nics=nics, deadline_s=deadline_s, key=key)
    if kind == "shm":
        return ShmTransport(socket_dir, nics=nics, deadline_s=deadline_s)
    if kind == "tcp":
        return TcpTransport(host, port, nics=nics, deadline_s=deadline_s, key=key)
    if kind == "nixl":
        from dualpath.transport.nixl import NixlTransport  # loads UCX

        return NixlTransport(host, port, nics=nics, deadline_s=deadline_s, key=key)
    raise ConfigError(f"no transport {kind!r}; choose auto, shm (one machine), tcp or nixl")
