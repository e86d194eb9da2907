"""Blocks of doctor's own on a store, and their end: nothing of them stays, nothing else is touched."""

import asyncio
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.core.keys import KEY_BYTES, BlockKey
from dualpath.core.layout import BlockLayout
from dualpath.doctor.budget import Progress, Stopwatch, as_one_error
from dualpath.store import namespace
from dualpath.store.base import Store
from dualpath.store.marker import ROOT_MARKER, is_namespace

LEAST_BLOCKS = 16  # one for each of the concurrent reads
MOST_BLOCKS = 512
MOST_BYTES = 256 << 20
WRITERS = 4
WRITE_SHARE = 0.2  # of the time for storage


def scratch_layout(block_bytes: int) -> BlockLayout:
    """A layout that nobody else has, so that its namespace is ours alone."""
    return BlockLayout(f"dualpath-doctor-{secrets.token_hex(8)}", 1, 1, block_bytes, "uint8")


async def write_blocks(store: Store, layout: BlockLayout, seconds: float, progress: Progress) -> list[BlockKey]:
    """Write different random blocks for about so long, or until there are enough; at least LEAST_BLOCKS."""
    progress("writing blocks", 0)
    keys: list[BlockKey] = []
    most = max(LEAST_BLOCKS, min(MOST_BLOCKS, MOST_BYTES // layout.block_bytes))
    watch = Stopwatch()

    async def worker() -> None:
        while len(keys) < LEAST_BLOCKS or (len(keys) < most and watch.seconds < seconds):
            key = secrets.token_bytes(KEY_BYTES)
            keys.append(key)
            await store.write(key, memoryview(os.urandom(layout.block_bytes)))

    with as_one_error():
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WRITERS):
                tasks.create_task(worker())
    return keys


@contextmanager
def scratch_folder(root: Path, layout: BlockLayout) -> Iterator[None]:
    """Remove the layout's namespace at the end, and the folders above it that were not there before."""
    absent = [path for path in (root, *root.parents) if not path.exists()]
    marked = (root / ROOT_MARKER).exists()
    try:
        yield
    finally:
        shutil.rmtree(namespace.folder_of(root, layout), ignore_errors=True)
        if not marked and root.is_dir() and not any(map(is_namespace, os.listdir(root))):
            (root / ROOT_MARKER).unlink(missing_ok=True)
        for path in absent:
            _remove_empty(path)


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return  # somebody else has begun to use it


def check_free(root: Path, block_bytes: int) -> None:
    """ConfigError unless the blocks fit with room to spare."""
    at = next(path for path in (root, *root.parents) if path.exists())
    needed = 2 * max(LEAST_BLOCKS * block_bytes, MOST_BYTES)
    if shutil.disk_usage(at).free < needed:
        raise ConfigError(
            f"{at} has less than {needed >> 20} MiB free: measuring needs that; free some or choose another"
        )
