"""Objects in one namespace of a file system. All methods block; a ThreadedStore calls them."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from dualpath.core.errors import BlockCorrupt, BlockMissing
from dualpath.core.keys import BlockKey
from dualpath.core.layout import BlockLayout
from dualpath.store import namespace
from dualpath.store.format import HEADER_BYTES, BlockFormat
from dualpath.store.marker import key_of
from dualpath.store.oserrors import unavailable


class BlockFolder:
    """Reads, writes, lists and deletes objects of one layout. StoreUnavailable on any I/O error.

    Without `page_cache` blocks come from the file system and leave no copy behind in this host's memory.
    """

    def __init__(self, root: Path, layout: BlockLayout, *, sync: bool, page_cache: bool = True) -> None:
        self._root = root
        self._layout = layout
        self._namespace = namespace.folder_of(root, layout)
        self._format = BlockFormat(layout)
        self._sync = sync
        self._page_cache = page_cache

    def prepare(self) -> None:
        """Make the folders, check that they are ours and writable, sweep leftovers of crashes."""
        namespace.prepare(self._root, self._layout)

    def path(self, key: BlockKey) -> Path:
        """Where the object of this key lies."""
        name = key.hex()
        return self._namespace / name[:2] / name

    def read(self, key: BlockKey, into: memoryview) -> None:
        """Fill `into` straight from the file and verify it; BlockMissing, BlockCorrupt."""
        header = bytearray(HEADER_BYTES)
        path = self.path(key)
        with unavailable("read", path):
            try:
                count, size = self._read_file(path, [memoryview(header), into])
            except FileNotFoundError:  # also in mid-read: mounted file systems lose open files with their names
                raise BlockMissing(f"block {key.hex()} is not stored") from None
        self._format.verify(key, header[:count], into[: max(0, count - HEADER_BYTES)])
        if size != count:
            raise BlockCorrupt(f"block {key.hex()}: its file has {size} bytes instead of {count}")

    def write(self, key: BlockKey, block: memoryview) -> None:
        """Write under a temporary name, then rename; no-op if an object of the right size is there."""
        if self.contains(key):
            return
        path = self.path(key)
        temporary = self._namespace / namespace.INCOMING / f"{path.name}.{secrets.token_hex(8)}"
        with unavailable("write", path):
            try:
                self._write_new(temporary, [memoryview(self._format.header(key, block)), block])
                os.replace(temporary, path)
            except OSError:
                _discard(temporary)
                raise
            if self._sync:
                _sync_folder(path.parent)

    def contains(self, key: BlockKey) -> bool:
        """Whether an object of the right size lies there; a torn one (power loss) does not count."""
        path = self.path(key)
        with unavailable("look up", path):
            try:
                return os.stat(path).st_size == self._format.object_bytes
            except FileNotFoundError:
                return False

    def delete(self, key: BlockKey) -> None:
        """Remove the object if it is there."""
        path = self.path(key)
        with unavailable("delete", path):
            path.unlink(missing_ok=True)

    def batches(self) -> Iterator[list[BlockKey]]:
        """Keys, one fan-out folder at a time; other files are passed over."""
        for first_byte in namespace.FAN_OUT:
            folder = self._namespace / first_byte
            with unavailable("list", folder):
                names = os.listdir(folder)
            yield [key for name in names if (key := key_of(first_byte, name)) is not None]

    def other_layouts(self) -> list[str]:
        """A line for every other layout that has blocks under this root."""
        return namespace.other_layouts(self._root, self._layout)

    def _read_file(self, path: Path, parts: list[memoryview]) -> tuple[int, int]:
        """Fill the buffers; bytes that came, and bytes that the file has."""
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._forget(file)  # what a writer on this host may have left
            count = _read_whole(file, parts)
            size = os.fstat(file).st_size
            self._forget(file)
        finally:
            os.close(file)
        return count, size

    def _forget(self, file: int) -> None:
        """Drop the file's clean pages from the page cache, if that is wanted."""
        if not self._page_cache:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def _write_new(self, path: Path, parts: list[memoryview]) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            _write_whole(file, parts)
            if self._sync:
                os.fsync(file)
        finally:
            os.close(file)


def _read_whole(file: int, parts: list[memoryview]) -> int:
    """Fill the buffers from the file's start; returns the bytes that came, fewer only at the file's end."""
    total = 0
    while parts and (count := os.preadv(file, parts, total)):
        total += count
        parts = _after(parts, count)
    return total


def _write_whole(file: int, parts: list[memoryview]) -> None:
    while parts:
        parts = _after(parts, os.writev(file, parts))


def _after(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers behind their first `count` bytes."""
    while parts and count >= len(parts[0]):
        count -= len(parts[0])
        parts = parts[1:]
    return [parts[0][count:], *parts[1:]] if parts else []


def _sync_folder(folder: Path) -> None:
    """Make a rename survive power loss."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _discard(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        return  # the write's own error is the one to tell; a later open() sweeps the leftover
