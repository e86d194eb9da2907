"""The HTTP server's port, settled before anything starts."""

import errno
import socket

from dualpath.core.errors import ConfigError


def free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0; ConfigError when one cannot listen there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is in use; stop what uses it, or choose another with --port (0: any)"
            ) from None
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
