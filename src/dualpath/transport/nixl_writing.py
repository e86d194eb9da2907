"""One transfer as its writer does it: batches of NIXL writes, a few under way at a time, at the pace of both NICs."""

import asyncio
import socket
from collections import deque
from collections.abc import Sequence

from dualpath.core.errors import TransferError
from dualpath.transport.base import Lane
from dualpath.transport.nic import Link
from dualpath.transport.nixl_agent import Write
from dualpath.transport.nixl_lane import NixlLane
from dualpath.transport.nixl_wire import STOP, TICK, Target, WriteCursor

BATCH_BYTES = 1 << 20  # posting copies into the kernel and holds Python's lock meanwhile, so it must be short
BATCH_WRITES = 256
_AHEAD = 3  # batches under way; bounds how long a cancelled transfer must wait for them
SETTLE_S = 2.0
_TAKE = 4096


class Writing:
    """Copies registered memory to a Target. The connection tells it of ticks and of the owner's wish to stop."""

    def __init__(self, lane: NixlLane, sock: socket.socket, source: int, target: Target, writes: Sequence[Write]):
        self._lane = lane
        self._sock = sock
        self._source = source
        self._target = target
        self._cursor = WriteCursor(writes)
        self._left = sum(write.length for write in writes)
        self._posted: deque[asyncio.Future[None]] = deque()
        self._ticks = asyncio.Semaphore(0)
        self._stopped = False
        self._failed = False

    async def run(self, link: Link, lane: Lane) -> None:
        """Return when the owner has all bytes. After an error ask settled()."""
        loop = asyncio.get_running_loop()
        work = loop.create_task(self._work(link, lane))
        loop.add_reader(self._sock, self._hear, work)
        try:
            await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._stopped and not (task and task.cancelling()):
                raise TransferError("the other side ended the transfer early") from None
            raise
        finally:
            loop.remove_reader(self._sock)

    async def settled(self) -> bool:
        """Whether all that was posted has ended, and well: then nothing of it is on its way to the owner."""
        if self._posted:
            await asyncio.wait(self._posted, timeout=SETTLE_S)
        return not self._failed and all(future.done() and not future.exception() for future in self._posted)

    async def _work(self, link: Link, lane: Lane) -> None:
        if link.unlimited and not self._target.paced:
            while self._left:
                await self._move(min(BATCH_BYTES, self._left))
        else:
            await link.carry(self._left, lane, self._move)
        while self._posted:
            await self._first_done()

    async def _move(self, size: int) -> None:
        if self._target.paced:
            await self._ticks.acquire()
        self._left -= size
        writes = self._cursor.take(size)
        for start in range(0, len(writes), BATCH_WRITES):
            while len(self._posted) >= _AHEAD:
                await self._first_done()
            self._posted.append(self._lane.write(writes[start : start + BATCH_WRITES], self._source, self._target))

    async def _first_done(self) -> None:
        await asyncio.wait([self._posted[0]])  # which a cancelled task does not cancel
        try:
            self._posted.popleft().result()
        except TransferError:
            self._failed = True
            raise

    def _hear(self, work: asyncio.Task[None]) -> None:
        """Ticks, a stop, or the end of the connection."""
        try:
            data = self._sock.recv(_TAKE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or STOP in data:
            self._stopped = True
            asyncio.get_running_loop().remove_reader(self._sock)
            work.cancel()
        for _ in range(data.count(TICK)):
            self._ticks.release()
