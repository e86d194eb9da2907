"""Blocks as files on a local or mounted file system."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from dualpath.core.errors import StoreUnavailable
from dualpath.core.keys import BlockKey
from dualpath.core.layout import BlockLayout
from dualpath.store import namespace
from dualpath.store.folder import BlockFolder
from dualpath.store.format import BlockFormat
from dualpath.store.prefix import longest_prefix

T = TypeVar("T")


class PosixStore:
    """One layout's blocks under `root`, which several processes, also of several hosts, may use at once.

    A written block is seen by all of them and survives any process's death. With `sync` it also survives
    power loss (fsync of file and folder, slow); without, blocks of the last seconds may then be absent or
    torn, which reads find. `workers` threads do the I/O. A store belongs to one event loop.
    """

    def __init__(self, root: Path, layout: BlockLayout, *, workers: int = 8, sync: bool = False) -> None:
        self.root = root
        self.layout = layout
        self._format = BlockFormat(layout)
        self._folder = BlockFolder(namespace.folder_of(root, layout), self._format, sync=sync)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="store")
        self._free_workers = asyncio.Semaphore(workers)  # callers wait here: the pool's own queue stays empty
        self._closed = False

    async def open(self) -> None:
        """Make the folders, check that they are ours and writable, sweep leftovers of crashes."""
        await self._run(partial(namespace.prepare, self.root, self.layout))

    async def read(self, key: BlockKey, into: memoryview) -> None:
        """Fill `into`. Even when cancelled it returns only once no thread writes to `into` any more."""
        self._format.check_key(key)
        await self._run(partial(self._folder.read, key, self._format.target(into)))

    async def write(self, key: BlockKey, block: memoryview) -> None:
        """Store the block. Even when cancelled it returns only once no thread looks at `block` any more."""
        self._format.check_key(key)
        await self._run(partial(self._folder.write, key, self._format.source(block)))

    async def contains(self, key: BlockKey) -> bool:
        """Whether an object of the right size lies under this key."""
        self._format.check_key(key)
        return await self._run(partial(self._folder.contains, key))

    async def longest_prefix(self, keys: Sequence[BlockKey]) -> int:
        """Length of the stored prefix, by binary search."""
        return await longest_prefix(keys, self.contains)

    async def delete(self, key: BlockKey) -> None:
        """Forget a block; absent keys are no error."""
        self._format.check_key(key)
        await self._run(partial(self._folder.delete, key))

    async def keys(self) -> AsyncIterator[BlockKey]:
        """All stored keys, one fan-out folder at a time."""
        for first_byte in namespace.FAN_OUT:
            for key in await self._run(partial(self._folder.keys, first_byte)):
                yield key

    async def other_layouts(self) -> list[str]:
        """A line for each other layout with blocks under this root and their number: worth a warning."""
        return await self._run(partial(namespace.other_layouts, self.root, self.layout))

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
                raise StoreUnavailable(f"the store {self.root} is closed")
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
