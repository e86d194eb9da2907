"""The write-back queue of a node: new blocks to storage, parents before children; skipping is counted.

Stored prefixes are closed: a block is written only after its parent is durable, wherever the parent was written. An
item that waits for its parent keeps no other from being written.

Every item has an arena slot, so the arena bounds the queue. Items that outlive their grant are late: their slots belong
to the arena's write-back share. What exceeds the share for longer than a grace period is skipped, the newest first
(children before parents): new requests wait that long for a slow store, not longer.
"""

import asyncio
import logging
from collections.abc import Callable

from dualpath.core.errors import StoreError, StoreUnavailable
from dualpath.core.keys import BlockKey
from dualpath.core.report import NodeStats
from dualpath.core.wire import PersistItem
from dualpath.node.arena import Arena
from dualpath.store.base import Store

log = logging.getLogger("dualpath.node")
PARENT_POLL_S = 0.05
PARENT_DEADLINE_S = 5.0  # for a parent that another node writes
GRACE_S = 10.0  # for late items beyond the write-back share
_SKIPPED_BOUND = 10_000


class WriteQueue:
    """Writes slots of `arena` to `store`; `on_end(item, durable)` follows every item unless it is abandoned."""

    def __init__(
        self,
        store: Store,
        arena: Arena,
        stats: NodeStats,
        on_end: Callable[[PersistItem, bool], None],
        *,
        share: int,
        concurrency: int,
        deadline_s: float,
    ) -> None:
        self._store = store
        self._arena = arena
        self._stats = stats
        self._on_end = on_end
        self._share = share
        self._deadline_s = deadline_s
        self._turns = asyncio.Semaphore(concurrency)  # first come, first served
        self._tasks: dict[asyncio.Task[bool], int] = {}  # in order of their coming, with their grants
        self._released: set[int] = set()  # grants that are gone but have items left
        self._trimmed: set[asyncio.Task[bool]] = set()
        self._pending: dict[BlockKey, asyncio.Task[bool]] = {}  # the last accepted item of each key
        self._skipped: dict[BlockKey, None] = {}  # lately not persisted: children need not wait for these
        self._failing = False

    def enqueue(self, grant: int, item: PersistItem) -> None:
        """Take a block of the grant to be written."""
        self._stats.write_queue_blocks += 1
        before, parent = self._pending.get(item.key), self._pending.get(item.parent)
        task = asyncio.create_task(self._serve(item, before, parent))
        self._pending[item.key] = task
        self._tasks[task] = grant
        task.add_done_callback(lambda task: self._ended(task, item))

    def release(self, grant: int) -> None:
        """The grant is gone: what is left of its items is late."""
        if grant in self._tasks.values():
            self._released.add(grant)
            if len(self._late()) > self._share:
                asyncio.get_running_loop().call_later(GRACE_S, self._trim)

    def _late(self) -> list[asyncio.Task[bool]]:
        return [task for task, grant in self._tasks.items() if grant in self._released]

    def _trim(self) -> None:
        """Skip the newest late items beyond the share."""
        for task in self._late()[self._share :]:
            self._trimmed.add(task)
            task.cancel()

    async def abandon(self) -> None:
        """Forget what is queued and stop what runs: the slots are needed for something else. Counted as skipped."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    close = abandon

    def _ended(self, task: asyncio.Task[bool], item: PersistItem) -> None:
        grant = self._tasks.pop(task)
        if grant not in self._tasks.values():
            self._released.discard(grant)
        if self._pending.get(item.key) is task:
            del self._pending[item.key]
        self._stats.write_queue_blocks -= 1
        durable = not task.cancelled() and not task.exception() and task.result()
        if not durable:
            self._skip(item.key)
        if task.cancelled() and task not in self._trimmed:
            return
        self._trimmed.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("the write-back of block %s failed unexpectedly", item.key.hex(), exc_info=error)
        self._on_end(item, durable)

    def _skip(self, key: BlockKey) -> None:
        self._stats.writes_skipped += 1
        self._skipped[key] = None
        if len(self._skipped) > _SKIPPED_BOUND:
            del self._skipped[next(iter(self._skipped))]

    async def _serve(
        self, item: PersistItem, before: asyncio.Task[bool] | None, parent: asyncio.Task[bool] | None
    ) -> bool:
        """Whether the block is durable in the end."""
        if before is not None and await _outcome(before):
            return True
        try:
            if item.parent and not (parent and await _outcome(parent)) and not await self._appears(item.parent):
                return False
            async with self._turns:
                await self._write(item)
        except StoreError as error:
            if not self._failing:
                log.warning("new blocks are not persisted, serving goes on: %s", error)
            self._failing = True
            return False
        self._failing = False
        self._skipped.pop(item.key, None)
        return True

    async def _write(self, item: PersistItem) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                if not await self._store.contains(item.key):
                    await self._store.write(item.key, self._arena.slot(item.slot))
                    self._stats.written_bytes += self._arena.layout.block_bytes
        except TimeoutError:
            raise StoreUnavailable(f"a write took longer than {self._deadline_s:g} s") from None

    async def _appears(self, key: BlockKey) -> bool:
        """Whether the block lies on storage, or comes there soon: another node may be writing it."""
        polls = 1 if key in self._skipped else int(PARENT_DEADLINE_S / PARENT_POLL_S)
        for _ in range(polls):
            if await self._store.contains(key):
                return True
            await asyncio.sleep(PARENT_POLL_S)
        return False


async def _outcome(task: asyncio.Task[bool]) -> bool:
    """What became of another item, whose failure is its own."""
    await asyncio.wait({task})
    return not task.cancelled() and task.exception() is None and task.result()
