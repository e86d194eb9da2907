"""Accepts peers' connections and keeps one task for each."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

MAX_INBOUND = 4096  # connections from peers; more are closed at once
_log = logging.getLogger(__name__)


class ConnectionServer:
    """Runs `serve(sock)` for every connection that `admit(sock)` lets in; serve closes its socket."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        admit: Callable[[socket.socket], bool],
        serve: Callable[[socket.socket], Coroutine[Any, Any, None]],
    ) -> None:
        self._listener = listener
        self._admit = admit
        self._serve = serve
        self._connections: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._acceptor = asyncio.get_running_loop().create_task(self._accept())

    async def close(self) -> None:
        """Stop listening and end all connections; returns when their tasks have ended."""
        tasks: list[Awaitable[None]] = [self._acceptor, *self._connections]
        self._acceptor.cancel()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, or the peer gave up: neither ends the endpoint
                _log.warning("could not accept a peer's connection: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._connections) >= MAX_INBOUND or not self._admit(sock):
                sock.close()
                continue
            task = loop.create_task(self._serve(sock))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
