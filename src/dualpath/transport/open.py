"""Transports by name, as flags and configuration files give them."""

from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.transport.base import Transport
from dualpath.transport.nic import NicPair
from dualpath.transport.shm import ShmTransport
from dualpath.transport.tcp import TcpTransport


def open_transport(
    kind: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    socket_dir: Path | None = None,
    nics: NicPair | None = None,
    deadline_s: float = 30,
    key: bytes | None = None,
) -> Transport:
    """An endpoint, not yet started: "tcp" on host and port, or "shm" in socket_dir; ConfigError for other
    kinds.
    """
    if kind == "auto":
        kind = "shm" if host == "127.0.0.1" else "tcp"
    if kind == "tcp":
        return TcpTransport(host, port, nics=nics, deadline_s=deadline_s, key=key)
    if kind == "shm":
        return ShmTransport(socket_dir, nics=nics, deadline_s=deadline_s)
    raise ConfigError(f"no transport {kind!r}; choose shm (one machine) or tcp")
