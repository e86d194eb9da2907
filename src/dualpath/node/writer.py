"""The write-back queue of a node: new blocks to storage, parents before children, bounded; skipping is counted.

Stored prefixes are closed: a block is written only after its parent is durable, wherever the parent was written.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from dualpath.core.errors import StoreError
from dualpath.core.keys import BlockKey
from dualpath.core.report import NodeStats
from dualpath.core.wire import PersistItem
from dualpath.node.arena import Arena
from dualpath.store.base import Store

PARENT_POLL_S = 0.05
PARENT_DEADLINE_S = 5.0


class WriteQueue:
    """Writes slots of `arena` to `store`; `on_end(item, durable)` follows every accepted item."""

    def __init__(
        self,
        store: Store,
        arena: Arena,
        stats: NodeStats,
        on_end: Callable[[PersistItem, bool], None],
        *,
        bound: int,
        concurrency: int,
        deadline_s: float,
    ) -> None:
        self._store = store
        self._arena = arena
        self._stats = stats
        self._on_end = on_end
        self._bound = bound
        self._deadline_s = deadline_s
        self._queue: deque[PersistItem] = deque()
        self._pending: dict[BlockKey, asyncio.Future[bool]] = {}
        self._wake = asyncio.Semaphore(0)
        self._workers = [asyncio.create_task(self._work()) for _ in range(concurrency)]

    def enqueue(self, item: PersistItem) -> bool:
        """Take a block to be written; False (and counted) when the arena's write-back share is full."""
        if self._stats.write_queue_blocks >= self._bound:
            self._stats.writes_skipped += 1
            return False
        self._stats.write_queue_blocks += 1
        self._pending.setdefault(item.key, asyncio.get_running_loop().create_future())
        self._queue.append(item)
        self._wake.release()
        return True

    async def close(self) -> None:
        """Stop the workers; what is queued is not written."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            await self._wake.acquire()
            item = self._queue.popleft()
            durable = await self._write(item)
            self._stats.write_queue_blocks -= 1
            self._stats.writes_skipped += not durable
            pending = self._pending.pop(item.key, None)
            if pending and not pending.done():
                pending.set_result(durable)
            self._on_end(item, durable)

    async def _write(self, item: PersistItem) -> bool:
        try:
            if not await self._parent_durable(item.parent):
                return False
            async with asyncio.timeout(self._deadline_s):
                await self._store.write(item.key, self._arena.slot(item.slot))
        except (StoreError, TimeoutError):
            return False
        self._stats.written_bytes += self._arena.layout.block_bytes
        return True

    async def _parent_durable(self, parent: BlockKey) -> bool:
        """Wait for the parent: in this queue, or in another node's, whose write we can only see on storage."""
        if not parent:
            return True
        pending = self._pending.get(parent)
        if pending is not None:
            return await asyncio.shield(pending)
        for _ in range(int(PARENT_DEADLINE_S / PARENT_POLL_S)):
            if await self._store.contains(parent):
                return True
            await asyncio.sleep(PARENT_POLL_S)
        return False
