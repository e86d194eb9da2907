"""The storage read queue of a node: first in, first out, bounded concurrency, one read a block.

Requests that want a block which is queued or being read share that read; a request that goes away gives up its places.
The queue is bounded by the arena: every entry has a slot.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dualpath.core.errors import BlockCorrupt, BlockMissing, StoreError, StoreUnavailable
from dualpath.core.keys import BlockKey
from dualpath.core.report import NodeStats
from dualpath.node.arena import Arena
from dualpath.store.base import Store

log = logging.getLogger("dualpath.node")


@dataclass(slots=True)
class _Want:
    grant: int
    slot: int
    done: asyncio.Future[int]


@dataclass(eq=False, slots=True)
class _Read:
    key: BlockKey
    wants: list[_Want] = field(default_factory=list)
    target: _Want | None = None  # whose slot is being filled; None while the read is queued
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class ReadQueue:
    """Reads blocks from `store` into slots of `arena`; `on_lost(key)` names each that is missing or was corrupt.

    That is said whether or not anybody waits for the block any more: who believed in it shall know.
    """

    def __init__(
        self,
        store: Store,
        arena: Arena,
        stats: NodeStats,
        on_lost: Callable[[BlockKey], None],
        *,
        concurrency: int,
        deadline_s: float,
    ) -> None:
        self._store = store
        self._arena = arena
        self._stats = stats
        self._on_lost = on_lost
        self._deadline_s = deadline_s
        self._queue: deque[_Read] = deque()
        self._open: dict[BlockKey, _Read] = {}  # reads that further wants of the block may join
        self._running: set[_Read] = set()
        self._wake = asyncio.Semaphore(0)
        self._busy_since_ns = 0
        self._workers = [asyncio.create_task(self._work()) for _ in range(concurrency)]

    def submit(self, grant: int, slot: int, key: BlockKey) -> asyncio.Future[int]:
        """Queue a read. The future tells the bytes that storage moved for it (0: it shared a read), or a StoreError."""
        want = _Want(grant, slot, asyncio.get_running_loop().create_future())
        if self._stats.read_queue_blocks == 0:
            self._busy_since_ns = time.monotonic_ns()
        self._stats.read_queue_blocks += 1
        read = self._open.get(key)
        if read is None:
            read = self._open[key] = _Read(key)
            self._queue.append(read)
            self._wake.release()
        read.wants.append(want)
        return want.done

    def cancel(self, grant: int) -> None:
        """Cancel the grant's futures and give up its places; what fills its slots now goes on: see `drained`."""
        for read in [*self._open.values(), *self._running]:
            for want in [w for w in read.wants if w.grant == grant]:
                want.done.cancel()
                if want is not read.target:
                    read.wants.remove(want)
                    self._left(1)

    async def drained(self, grant: int) -> None:
        """Return when storage fills none of the grant's slots any more; to be called after `cancel`."""
        for read in list(self._running):
            if read.target and read.target.grant == grant:
                await read.ended.wait()

    def busy_ns(self) -> int:
        """Time in which any read waited or ran, up to now."""
        running = time.monotonic_ns() - self._busy_since_ns if self._stats.read_queue_blocks else 0
        return self._stats.read_busy_ns + running

    async def close(self) -> None:
        """Stop the workers; wants that nobody served are cancelled."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for read in list(self._open.values()):
            for want in read.wants:
                want.done.cancel()

    async def _work(self) -> None:
        while True:
            await self._wake.acquire()
            read = self._queue.popleft()
            if not read.wants:
                self._shut(read)
                continue
            read.target = read.wants[0]
            self._running.add(read)
            try:
                await self._perform(read, self._arena.slot(read.target.slot))
            finally:
                self._running.discard(read)
                read.ended.set()

    async def _perform(self, read: _Read, into: memoryview) -> None:
        """Waiters hear of a late read at its deadline; the slot stays in use as long as the store may write to it."""
        work = asyncio.ensure_future(self._store.read(read.key, into))
        try:
            await asyncio.wait({work}, timeout=self._deadline_s)
            if not work.done():
                self._fail(read, StoreUnavailable(f"a read took longer than {self._deadline_s:g} s"))
            elif error := work.exception():
                await self._failed(read, error)
            else:
                self._succeed(read)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def _succeed(self, read: _Read) -> None:
        # Copies are made before anybody is told: a waiter's slot or the target's may be released right after.
        assert read.target is not None
        for want in read.wants:
            if want is not read.target:
                self._arena.copy(read.target.slot, want.slot)
        self._stats.read_bytes += self._arena.layout.block_bytes
        self._stats.reads_shared += len(read.wants) - 1
        self._shut(read)
        for want in read.wants:
            if not want.done.done():
                want.done.set_result(self._arena.layout.block_bytes if want is read.target else 0)
        self._clear(read)

    async def _failed(self, read: _Read, error: BaseException) -> None:
        """A corrupt block is deleted before anybody is told, so that a recomputed one can take its place."""
        self._shut(read)
        if isinstance(error, BlockCorrupt):
            log.warning("deleting a corrupt block: %s", error)
            try:
                async with asyncio.timeout(self._deadline_s):
                    await self._store.delete(read.key)
            except (StoreError, TimeoutError) as reason:
                log.error("cannot delete corrupt block %s: %s", read.key.hex(), reason)
        if isinstance(error, (BlockCorrupt, BlockMissing)):
            self._on_lost(read.key)
        if not isinstance(error, StoreError):
            log.error("a read failed unexpectedly", exc_info=error)
            error = StoreUnavailable(f"unexpected failure: {error!r}")
        self._fail(read, error)

    def _fail(self, read: _Read, error: StoreError) -> None:
        self._stats.read_errors += 1
        self._shut(read)
        for want in read.wants:
            if not want.done.done():
                want.done.set_exception(error)
        self._clear(read)

    def _shut(self, read: _Read) -> None:
        """Later wants of the block need a read of their own."""
        if self._open.get(read.key) is read:
            del self._open[read.key]

    def _clear(self, read: _Read) -> None:
        count = len(read.wants)
        read.wants.clear()
        self._left(count)

    def _left(self, count: int) -> None:
        self._stats.read_queue_blocks -= count
        if count and self._stats.read_queue_blocks == 0:
            self._stats.read_busy_ns += time.monotonic_ns() - self._busy_since_ns
