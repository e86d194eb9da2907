"""Read rates of a file system: cold by O_DIRECT and by dropping its pages, and warm, each called by its name.

dualpath reads through the page cache, so on equal footing it meets plain preadv twice: with pages that have just been
dropped, and with pages that are all there. O_DIRECT is the device's own figure.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from dualpath.core.hostprofile import ReadRate, Storage
from dualpath.core.keys import BlockKey
from dualpath.core.layout import BlockLayout
from dualpath.doctor.budget import Progress, as_one_error
from dualpath.doctor.interrupt import run
from dualpath.doctor.reads import (
    PAGE_BYTES,
    Buffers,
    Contest,
    async_sweep,
    compare,
    summary,
    thread_sweep,
)
from dualpath.doctor.scratch import WRITE_SHARE, check_free, scratch_folder, write_blocks
from dualpath.doctor.system import System
from dualpath.store.base import Store
from dualpath.store.format import HEADER_BYTES
from dualpath.store.namespace import folder_of
from dualpath.store.oserrors import unavailable
from dualpath.store.posix import PosixStore

DIRECT, DROPPED, CACHED = "O_DIRECT", "page cache dropped by advice", "page cache"


class BlockFiles:
    """The files of written blocks, read with nothing but system calls. All methods block."""

    def __init__(self, paths: Sequence[Path], block_bytes: int) -> None:
        self.paths = paths
        self._block_bytes = block_bytes
        self._filled = False

    def read(self, number: int, into: memoryview) -> None:
        """One block by a plain preadv, header and payload apart, as the store does it."""
        file = os.open(self.paths[number], os.O_RDONLY | os.O_CLOEXEC)
        try:
            count = os.preadv(file, [bytearray(HEADER_BYTES), into[: self._block_bytes]], 0)
        finally:
            os.close(file)
        self._check(count)

    def read_direct(self, number: int, into: memoryview) -> None:
        """One block past the page cache; OSError where the file system refuses."""
        size = -(-(HEADER_BYTES + self._block_bytes) // PAGE_BYTES) * PAGE_BYTES
        file = os.open(self.paths[number], os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        try:
            count = os.preadv(file, [into[:size]], 0)
        finally:
            os.close(file)
        self._check(count)

    def takes_direct(self) -> bool:
        """Whether the file system reads past its cache."""
        try:
            self.read_direct(0, Buffers(self._block_bytes).views[0])
        except OSError:
            return False
        return True

    def drop(self) -> None:
        """Ask the kernel to forget the pages; it does for pages that are on storage and nobody's."""
        self._filled = False
        for path in self.paths:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)

    def fill(self) -> None:
        """Bring all pages into the cache, once after they were dropped."""
        if self._filled:
            return
        into = memoryview(bytearray(self._block_bytes))
        for number in range(len(self.paths)):
            self.read(number, into)
        self._filled = True

    def cached(self) -> int | None:
        """How many files' first pages are in the cache; None where the file system does not tell."""
        count = 0
        for path in self.paths:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                count += os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
            except OSError:
                return None
            finally:
                os.close(file)
        return count

    def can_drop(self) -> bool:
        """Whether dropping leaves next to nothing in the cache. Where nobody can tell, the advice is believed."""
        self.drop()
        left = self.cached()
        return left is None or left <= len(self.paths) // 20

    def _check(self, count: int) -> None:
        if count != HEADER_BYTES + self._block_bytes:
            raise OSError(f"a block's file gave {count} bytes: was it cut off while it was measured?")


def posix_storage(store: PosixStore, seconds: float, progress: Progress) -> Storage:
    """Measure a store of a scratch layout, with `sync` and a worker for each read; leaves nothing under its root.

    ConfigError or StoreError when the root is no usable store.
    """
    block_bytes = store.layout.block_bytes
    check_free(store.root, block_bytes)
    with scratch_folder(store.root, store.layout):
        kind = file_system(System(), store.root)
        reads = run(_measure(store, kind, seconds, progress))
    return summary(kind, block_bytes, reads, (DROPPED, CACHED))


async def _measure(store: PosixStore, kind: str, seconds: float, progress: Progress) -> list[ReadRate]:
    layout = store.layout
    try:
        await store.open()
        keys = await write_blocks(store, layout, WRITE_SHARE * seconds, progress)
        files = BlockFiles([block_path(store.root, layout, key) for key in keys], layout.block_bytes)
        contests = _contests(store, keys, files, layout.block_bytes, in_memory=kind in ("tmpfs", "ramfs"))
        with as_one_error(), unavailable("read blocks under", store.root):
            return await compare(contests, (1 - WRITE_SHARE) * seconds, progress)
    finally:
        await store.close()


def _contests(
    store: Store, keys: Sequence[bytes], files: BlockFiles, block_bytes: int, *, in_memory: bool
) -> list[Contest]:
    buffers = Buffers(block_bytes)

    async def read(number: int, into: memoryview) -> None:
        await store.read(keys[number], into[:block_bytes])

    both = {
        "bare": thread_sweep(files.read, len(keys), block_bytes, buffers),
        "store": async_sweep(read, len(keys), block_bytes, buffers),
    }
    contests = []
    if not in_memory and files.takes_direct():
        direct = thread_sweep(files.read_direct, len(keys), block_bytes, buffers)
        contests.append(Contest(DIRECT, {"bare": direct}, lambda: None))
    if not in_memory and files.can_drop():
        contests.append(Contest(DROPPED, both, files.drop))
    contests.append(Contest(CACHED, both, files.fill))
    return contests


def file_system(system: System, folder: Path) -> str:
    """Type of the file system that a folder (or the first one above it that exists) is on: ext4, fuse.juicefs."""
    at = folder.absolute()
    while not at.exists():
        at = at.parent
    at, best, kind = at.resolve(), -1, "unknown"
    for line in system.text("proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        mount = Path(fields.split()[4].replace("\\040", " "))
        if at.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), rest.split()[0]
    return kind


def block_path(root: Path, layout: BlockLayout, key: BlockKey) -> Path:
    """The file of a block, as docs/design/block-format.md has it."""
    return folder_of(root, layout) / key.hex()[:2] / key.hex()
