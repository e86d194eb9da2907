"""An endpoint's connections to one peer: made on demand, kept between transfers, dropped when the peer has
gone.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from dualpath.transport.base import Lane
from dualpath.transport.streams import Stream

MAX_CONNECTIONS = 8  # to one peer in one lane; further transfers wait their turn


class PeerConnections:
    """Connections to one peer, for each lane its own.

    A connection carries one transfer at a time. So a slow transfer delays no other, and one that fails or
    is cancelled takes only its own connection with it. `gone` is called when the last connection has ended.
    """

    def __init__(self, connect: Callable[[Lane], Awaitable[socket.socket]], gone: Callable[[], None]) -> None:
        self._connect = connect
        self._gone = gone
        self._idle: dict[Lane, list[Stream]] = {lane: [] for lane in Lane}
        self._turns = {lane: asyncio.Semaphore(MAX_CONNECTIONS) for lane in Lane}
        self._users = 0

    @asynccontextmanager
    async def connection(self, lane: Lane) -> AsyncIterator[Stream]:
        """A connection for one transfer; leaving with an exception closes it. OSError when the peer is not
        there.
        """
        self._users += 1
        try:
            async with self._turns[lane]:
                sock = self._take(lane) or Stream(await self._connect(lane))
                try:
                    yield sock
                except BaseException:
                    sock.close()
                    raise
                self._park(sock, lane)
        finally:
            self._users -= 1
            self._check_gone()

    def close(self) -> None:
        """Close the idle connections; those in use are their transfers' to close."""
        for lane in Lane:
            while (sock := self._take(lane)) is not None:
                sock.close()

    def _take(self, lane: Lane) -> Stream | None:
        if not self._idle[lane]:
            return None
        return self._idle[lane].pop()

    def _park(self, sock: Stream, lane: Lane) -> None:
        """Keep an idle connection; anything that arrives on it can only be its end, or garbage."""
        self._idle[lane].append(sock)
        sock.watch(partial(self._end, sock, lane))

    def _end(self, sock: Stream, lane: Lane) -> None:
        if sock not in self._idle[lane]:  # taken since it was parked: its transfer will see
            sock.ignore()
            return
        self._idle[lane].remove(sock)
        sock.close()
        self._check_gone()

    def _check_gone(self) -> None:
        if not self._users and not any(self._idle.values()):
            self._gone()
