"""Generated tokens on their way to the gateways: straight from the engine, one socket a gateway."""

import zmq

from dualpath.core import wire
from dualpath.core.ids import RequestId
from dualpath.core.request import Tokens


class TokenOutlet:
    """Sends without waiting; a gateway that is gone loses its tokens, for its clients are gone too."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}

    def send(self, reply_to: str, request: RequestId, index: int, token: int, gap: float) -> None:
        """Token number `index` of a request, and how far its logit lies above the second best."""
        socket = self._sockets.get(reply_to)
        if socket is None:
            socket = self._sockets[reply_to] = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.LINGER, 1000)
            socket.setsockopt(zmq.SNDHWM, 0)  # a slow gateway delays tokens; dropping one would end its request
            socket.connect(reply_to)
        try:
            socket.send(wire.encode(Tokens(request, index, [token], [gap])), zmq.DONTWAIT)
        except zmq.Again:
            return

    def close(self) -> None:
        """Send what is queued, for a second at most."""
        for socket in self._sockets.values():
            socket.close()
