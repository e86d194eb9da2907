"""Legs between storage and arena: reads and writes of whole blocks by the real stores, and their checksums."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from dualpath.bench.copy_legs import Leg, layout_of
from dualpath.core.keys import KEY_BYTES, BlockKey
from dualpath.core.layout import BlockLayout
from dualpath.doctor.posix_reads import BlockFiles, block_path
from dualpath.node.arena import Arena
from dualpath.store.base import Store
from dualpath.store.open import open_store
from dualpath.store.posix import PosixStore

READS_AT_ONCE, WRITES_AT_ONCE = 4, 2  # as a node's defaults


class StoreLegs:
    """Reads of the blocks under `keys`, and writes of new ones; `erase` removes all of them."""

    def __init__(self, store: Store, arena: Arena, name: str) -> None:
        self._store = store
        self._arena = arena
        self._name = name
        self.keys = _keys(arena.slots)
        self._new = _keys(arena.slots)

    async def fill(self) -> None:
        """Write what the reads want."""
        await self._each(self.keys, WRITES_AT_ONCE, write=True)

    @property
    def read(self) -> Leg:
        """Storage to arena."""
        return Leg(f"{self._name}, read", self._read)

    @property
    def write(self) -> Leg:
        """Arena to storage."""
        return Leg(f"{self._name}, write", self._write, after=self._remove_new)

    async def erase(self) -> None:
        """Remove every block of ours."""
        await asyncio.gather(*(self._store.delete(key) for key in (*self.keys, *self._new)))

    async def _read(self) -> int:
        return await self._each(self.keys, READS_AT_ONCE, write=False)

    async def _write(self) -> int:
        return await self._each(self._new, WRITES_AT_ONCE, write=True)

    async def _remove_new(self) -> None:
        await asyncio.gather(*(self._store.delete(key) for key in self._new))
        self._new = _keys(self._arena.slots)

    async def _each(self, keys: Sequence[BlockKey], at_once: int, *, write: bool) -> int:
        async def worker(first: int) -> None:
            for slot in range(first, len(keys), at_once):
                memory = self._arena.slot(slot)
                await (self._store.write if write else self._store.read)(keys[slot], memory)

        async with asyncio.TaskGroup() as tasks:
            for first in range(at_once):
                tasks.create_task(worker(first))
        return len(keys) * self._arena.layout.block_bytes


@asynccontextmanager
async def folder_legs(folder: Path, arena: Arena) -> AsyncIterator[list[Leg]]:
    """Legs of a file store, with its blocks in the page cache and without, and the first by bare system calls."""
    layouts = [layout_of(arena.layout.block_bytes, f"copy-cost-{secrets.token_hex(8)}") for _ in range(2)]
    warm = PosixStore(folder, layouts[0], workers=READS_AT_ONCE)
    cold = PosixStore(folder, layouts[1], workers=READS_AT_ONCE, sync=True, page_cache=False)
    async with _filled(warm, arena, "file, page cache") as cached, _filled(cold, arena, "file, no page cache") as past:
        files = BlockFiles([block_path(folder, layouts[0], key) for key in cached.keys], arena.layout.block_bytes)
        yield [_bare(files, arena), cached.read, past.read, cached.write]


def _bare(files: BlockFiles, arena: Arena) -> Leg:
    """One preadv after the other in this thread, without checksums: what the kernel takes of a read."""

    async def move() -> int:
        for slot in range(arena.slots):
            files.read(slot, arena.slot(slot))
        return arena.slots * arena.layout.block_bytes

    return Leg("file, page cache, bare preadv", move)


@asynccontextmanager
async def url_legs(url: str, layout: BlockLayout, arena: Arena) -> AsyncIterator[list[Leg]]:
    """Legs of the store at a URL; its service's own CPU time is not counted."""
    store = open_store(url, layout, workers=READS_AT_ONCE)
    async with _filled(store, arena, url.partition(":")[0]) as legs:
        yield [legs.read, legs.write]


@asynccontextmanager
async def _filled(store: Store, arena: Arena, name: str) -> AsyncIterator[StoreLegs]:
    legs = StoreLegs(store, arena, name)
    try:
        await store.open()
        try:
            await legs.fill()
            yield legs
        finally:
            await legs.erase()
    finally:
        await store.close()


def _keys(count: int) -> list[BlockKey]:
    return [secrets.token_bytes(KEY_BYTES) for _ in range(count)]
