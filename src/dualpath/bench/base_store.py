"""The store that every run of a replay starts from: filled once, and after each run put back to what it was."""

import asyncio
import secrets
import shutil
import urllib.parse
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from dualpath.core.config import CONTROL, Config
from dualpath.core.errors import ServiceError
from dualpath.core.keys import BlockKey
from dualpath.core.layout import BlockLayout
from dualpath.store.base import Store
from dualpath.store.open import open_store

AT_ONCE = 16


def private_place(config: Config, folder: Path) -> Config:
    """The config with a store of the replay's own: a new place below the configured one, or in `folder`."""
    name = f"replay-{secrets.token_hex(4)}"
    path = config.storage.path
    hosts = {
        host: replace(entry, store=_below(entry.store, name)) if entry.store else entry
        for host, entry in config.hosts.items()
    }
    storage = replace(config.storage, path=_below(path, name) if path else str(folder / name))
    return replace(config, storage=storage, hosts=hosts)


def _below(place: str, name: str) -> str:
    return f"{place.rstrip('/')}/{name}"


class BaseStore:
    """Blocks in the store of `config`, which no cluster uses while one of these methods runs."""

    def __init__(self, config: Config, layout: BlockLayout) -> None:
        self.layout = layout
        self._path = config.store_of(CONTROL)
        self._base: set[BlockKey] = set()

    def remember(self) -> None:
        """What it holds now is what `restore` goes back to."""
        self._base = asyncio.run(self._keys())

    def restore(self) -> None:
        """Delete what a run has added. ServiceError when it has lost blocks: later runs would not start equal."""
        present = asyncio.run(self._delete_all_but(self._base))
        if lost := len(self._base - present):
            raise ServiceError(f"a run lost {lost} blocks of the store; the runs cannot be compared")

    def remove(self) -> None:
        """Delete all blocks, and the folder if it is one."""
        asyncio.run(self._delete_all_but(()))
        if not urllib.parse.urlsplit(self._path).scheme:
            shutil.rmtree(self._path, ignore_errors=True)

    async def _keys(self) -> set[BlockKey]:
        async with self._open() as store:
            return {key async for key in store.keys()}  # noqa: SIM118

    async def _delete_all_but(self, kept: Collection[BlockKey]) -> set[BlockKey]:
        """Returns all that was there."""
        places = asyncio.Semaphore(AT_ONCE)

        async def delete(store: Store, key: BlockKey) -> None:
            async with places:
                await store.delete(key)

        async with self._open() as store:
            present = {key async for key in store.keys()}  # noqa: SIM118
            await asyncio.gather(*(delete(store, key) for key in present.difference(kept)))
        return present

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Store]:
        store = open_store(self._path, self.layout)
        try:
            await store.open()
            yield store
        finally:
            await store.close()
