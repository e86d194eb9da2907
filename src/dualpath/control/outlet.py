"""What engines tell gateways straight, above all generated tokens: one socket a gateway."""

import logging

import zmq

from dualpath.control.sockets import connect
from dualpath.core import wire
from dualpath.core.errors import ConfigError
from dualpath.core.request import Ready, Tokens

log = logging.getLogger("dualpath.control")
_GATEWAYS = 16  # more than live at once; a restarted gateway has a new endpoint, and the old one's socket must go


class Outlet:
    """Sends without waiting; a gateway that is gone loses its tokens, for its clients are gone too."""

    def __init__(self, key: bytes | None = None) -> None:
        """`key`: the cluster's, for gateways on other hosts."""
        self._key = key
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}  # the one used last is last

    def send(self, reply_to: str, message: Tokens | Ready) -> None:
        """Tell the gateway that listens at `reply_to`."""
        socket = self._sockets.pop(reply_to, None) or self._connect(reply_to)
        self._sockets[reply_to] = socket
        if len(self._sockets) > _GATEWAYS:
            self._sockets.pop(next(iter(self._sockets))).close()
        if socket.closed:
            return
        try:
            socket.send(wire.encode(message), zmq.DONTWAIT)
        except zmq.Again:
            return

    def _connect(self, reply_to: str) -> "zmq.Socket[bytes]":
        """A socket to a gateway; closed if the gateway cannot be reached at all, which must not end the engine."""
        socket = self._context.socket(zmq.PUSH)
        try:
            connect(socket, reply_to, self._key)
            socket.setsockopt(zmq.LINGER, 1000)
        except ConfigError as error:
            log.error("tokens for a gateway are dropped: %s", error)
            socket.close()
        return socket

    def close(self) -> None:
        """Send what is queued, for a second at most."""
        for socket in self._sockets.values():
            socket.close()
