"""What stores share whose work blocks: threads of their own, and callers who wait for them even when cancelled."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from dualpath.core.errors import StoreUnavailable
from dualpath.core.keys import BlockKey
from dualpath.core.layout import BlockLayout
from dualpath.store.format import BlockFormat
from dualpath.store.prefix import longest_prefix

T = TypeVar("T")


class Objects(Protocol):
    """The stored objects of one layout. All methods block and may run in several threads at once."""

    def prepare(self) -> None:
        """Check that the place is usable and ours, and make what it needs; StoreUnavailable or ConfigError."""

    def read(self, key: BlockKey, into: memoryview) -> None:
        """Fill `into` and verify it."""

    def write(self, key: BlockKey, block: memoryview) -> None:
        """Store the block; no-op if an object of the right size is there."""

    def contains(self, key: BlockKey) -> bool:
        """Whether an object of the right size is there."""

    def delete(self, key: BlockKey) -> None:
        """Remove the object if it is there."""

    def batches(self) -> Iterator[list[BlockKey]]:
        """All keys, some at a time; one thread at a time asks for the next."""

    def other_layouts(self) -> list[str]:
        """A line for each other layout that has blocks in the same place."""


class ThreadedStore:
    """Runs the methods of `objects` in `workers` threads. A store belongs to one event loop.

    `name` tells people which store it is; it must hold no credentials.
    """

    def __init__(self, objects: Objects, layout: BlockLayout, *, name: str, workers: int) -> None:
        self.name = name
        self.layout = layout
        self._objects = objects
        self._format = BlockFormat(layout)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="store")
        self._free_workers = asyncio.Semaphore(workers)  # callers wait here: the pool's own queue stays empty
        self._closed = False

    async def open(self) -> None:
        """Make what the store needs; check that it is ours and writable."""
        await self._run(self._objects.prepare)

    async def read(self, key: BlockKey, into: memoryview) -> None:
        """Fill `into`. Even when cancelled it returns only once no thread writes to `into` any more."""
        self._format.check_key(key)
        await self._run(partial(self._objects.read, key, self._format.target(into)))

    async def write(self, key: BlockKey, block: memoryview) -> None:
        """Store the block. Even when cancelled it returns only once no thread looks at `block` any more."""
        self._format.check_key(key)
        await self._run(partial(self._objects.write, key, self._format.source(block)))

    async def contains(self, key: BlockKey) -> bool:
        """Whether an object of the right size lies under this key."""
        self._format.check_key(key)
        return await self._run(partial(self._objects.contains, key))

    async def longest_prefix(self, keys: Sequence[BlockKey]) -> int:
        """Length of the stored prefix, by binary search."""
        return await longest_prefix(keys, self.contains)

    async def delete(self, key: BlockKey) -> None:
        """Forget a block; absent keys are no error."""
        self._format.check_key(key)
        await self._run(partial(self._objects.delete, key))

    async def keys(self) -> AsyncIterator[BlockKey]:
        """All stored keys, one batch at a time."""
        batches = self._objects.batches()
        while (batch := await self._run(partial(next, batches, None))) is not None:
            for key in batch:
                yield key

    async def other_layouts(self) -> list[str]:
        """A line for each other layout with blocks in this place and their number: worth a warning."""
        return await self._run(self._objects.other_layouts)

    async def close(self) -> None:
        """Take no new work; what runs still ends, then its threads go."""
        self._closed = True
        self._pool.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        """Do blocking work in a thread of our own.

        A cancelled caller waits for the thread: else an arena slot could be given away while it is filled.
        """
        async with self._free_workers:
            if self._closed:
                raise StoreUnavailable(f"the store {self.name} is closed")
            future = asyncio.get_running_loop().run_in_executor(self._pool, work)
            cancelled = None
            while not future.done():
                try:
                    await asyncio.wait({future})
                except asyncio.CancelledError as error:
                    cancelled = error
            if cancelled is not None:
                future.exception()  # fetched, so that asyncio does not report it as never seen
                raise cancelled
            return future.result()
