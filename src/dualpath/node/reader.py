"""The storage read queue of a node: first in, first out, bounded concurrency, one read a block.

Requests that want a block which is queued or being read share that read; a request that goes away gives up its places.
The queue is bounded by the arena: every entry has a slot.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from dualpath.core.errors import BlockCorrupt, StoreError, StoreUnavailable
from dualpath.core.keys import BlockKey
from dualpath.core.report import NodeStats
from dualpath.node.arena import Arena
from dualpath.store.base import Store


@dataclass(slots=True)
class _Want:
    grant: int
    slot: int
    done: asyncio.Future[int]


@dataclass(slots=True)
class _Read:
    key: BlockKey
    wants: list[_Want] = field(default_factory=list)
    running: bool = False


class ReadQueue:
    """Reads blocks from `store` into slots of `arena`."""

    def __init__(self, store: Store, arena: Arena, stats: NodeStats, *, concurrency: int, deadline_s: float) -> None:
        self._store = store
        self._arena = arena
        self._stats = stats
        self._deadline_s = deadline_s
        self._queue: deque[_Read] = deque()
        self._reads: dict[BlockKey, _Read] = {}
        self._wake = asyncio.Semaphore(0)
        self._busy_since_ns = 0
        self._workers = [asyncio.create_task(self._work()) for _ in range(concurrency)]

    def submit(self, grant: int, slot: int, key: BlockKey) -> asyncio.Future[int]:
        """Queue a read. The future tells the bytes that storage moved for it (0: it shared a read), or a StoreError."""
        want = _Want(grant, slot, asyncio.get_running_loop().create_future())
        if self._stats.read_queue_blocks == 0:
            self._busy_since_ns = time.monotonic_ns()
        self._stats.read_queue_blocks += 1
        read = self._reads.get(key)
        if read is None:
            read = self._reads[key] = _Read(key)
            self._queue.append(read)
            self._wake.release()
        read.wants.append(want)
        return want.done

    def cancel(self, grant: int) -> None:
        """Give up the grant's places; a read that is writing into one of its slots now still ends by itself."""
        for read in self._reads.values():
            keep = read.wants[:1] if read.running else []
            for want in [w for w in read.wants if w.grant == grant and w not in keep]:
                read.wants.remove(want)
                want.done.cancel()
                self._left(1)

    def busy_ns(self) -> int:
        """Time in which any read waited or ran, up to now."""
        running = time.monotonic_ns() - self._busy_since_ns if self._stats.read_queue_blocks else 0
        return self._stats.read_busy_ns + running

    async def close(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            await self._wake.acquire()
            read = self._queue.popleft()
            if read.wants:
                read.running = True
                try:
                    await self._perform(read)
                finally:
                    self._left(len(read.wants))
            self._close(read)

    async def _perform(self, read: _Read) -> None:
        target = read.wants[0]
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._store.read(read.key, self._arena.slot(target.slot))
        except TimeoutError:
            await self._fail(read, StoreUnavailable(f"a read took longer than {self._deadline_s:g} s"))
        except StoreError as error:
            await self._fail(read, error)
        else:
            # Copies are made before anybody can be told: a waiter's slot or the target's may be released right after.
            for want in read.wants[1:]:
                self._arena.copy(target.slot, want.slot)
            self._stats.read_bytes += self._arena.layout.block_bytes
            self._stats.reads_shared += len(read.wants) - 1
            self._close(read)
            for want in read.wants:
                if not want.done.done():
                    want.done.set_result(self._arena.layout.block_bytes if want is target else 0)

    async def _fail(self, read: _Read, error: StoreError) -> None:
        self._stats.read_errors += 1
        self._close(read)
        for want in read.wants:
            if not want.done.done():
                want.done.set_exception(error)
        if isinstance(error, BlockCorrupt):
            try:
                await self._store.delete(read.key)
            except StoreError:
                self._stats.read_errors += 1

    def _close(self, read: _Read) -> None:
        """Later wants of the block need a read of their own."""
        if self._reads.get(read.key) is read:
            del self._reads[read.key]

    def _left(self, count: int) -> None:
        self._stats.read_queue_blocks -= count
        if count and self._stats.read_queue_blocks == 0:
            self._stats.read_busy_ns += time.monotonic_ns() - self._busy_since_ns


class RateMeter:
    """The rate at which the node reads while it reads: an average that follows changes within seconds."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._bytes = 0
        self._busy_ns = 0

    def update(self, read_bytes: int, busy_ns: int) -> None:
        """Totals since the start; short busy times say little and wait for the next update."""
        busy, moved = busy_ns - self._busy_ns, read_bytes - self._bytes
        if busy > 100_000_000 and moved:
            self.bytes_per_s += 0.3 * (moved * 1e9 / busy - self.bytes_per_s)
            self._bytes, self._busy_ns = read_bytes, busy_ns
