"""Unix sockets of this machine and user: names, stale socket files, and who is at the other end.

A name is the path of a socket file, or "@name" for an abstract socket, which leaves no file behind.
"""

import os
import socket
import struct
from pathlib import Path

from dualpath.core.errors import ConfigError


def listen_unix(name: str) -> socket.socket:
    """A listening socket; makes a missing directory private, and replaces the file of a process that was killed.

    ConfigError when another process listens there or the name cannot be had.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not name.startswith("@"):
            _clear_path(Path(name))
        sock.bind(socket_address(name))
        sock.listen(128)
    except (OSError, ConfigError) as error:
        sock.close()
        raise ConfigError(f"cannot listen on {name}: {error}") from None
    return sock


def socket_address(name: str) -> str:
    """What bind and connect take for a name."""
    return "\0" + name[1:] if name.startswith("@") else name


def of_this_user(sock: socket.socket) -> bool:
    """Whether the process at the other end is this user's; abstract sockets have no permissions that say so."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


def _clear_path(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
        else:
            raise ConfigError("another process listens there; give each node a directory of its own")
