"""Objects of one layout in a bucket. All methods block; a ThreadedStore calls them.

store.json                    format version of the place
<layout fingerprint>/         namespace
    layout.json               the layout, for people
    00/ .. ff/                objects, by the first byte of their key
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import obstore
from isal.isal_zlib import crc32

from dualpath.core.errors import BlockMissing
from dualpath.core.keys import BlockKey
from dualpath.core.layout import BlockLayout
from dualpath.store import marker
from dualpath.store.download import Download
from dualpath.store.format import HEADER_BYTES, BlockFormat
from dualpath.store.objecterrors import unavailable, unusable

PART_BYTES = 8 << 20  # of payload; what is longer is read in parts of about this size at once
PART_GETS = 8  # parts of one block that are read at once, besides the first
LIST_KEYS = 1000  # a page of the services' listings


class BlockObjects:
    """Reads, writes, lists and deletes objects of one layout. StoreUnavailable on any trouble of the service.

    `place` names the bucket for people.
    """

    def __init__(
        self, bucket: obstore.store.ObjectStore, place: str, layout: BlockLayout, *, deadline_s: float
    ) -> None:
        self._bucket = bucket
        self._place = place
        self._layout = layout
        self._namespace = layout.fingerprint().hex()
        self._format = BlockFormat(layout)
        self._retry_s = deadline_s / 3  # the last request may take two thirds

    def path(self, key: BlockKey) -> str:
        """Where the object of this key lies in the bucket."""
        name = key.hex()
        return f"{self._namespace}/{name[:2]}/{name}"

    def prepare(self) -> None:
        """Check the place's version and prove that it can be written to and listed."""
        with unusable(self._place):
            root = self._get(marker.ROOT_MARKER)
            if root is None:
                self._put(marker.ROOT_MARKER, marker.root_marker())
            else:
                marker.check_root_marker(root, self._place)
            self._put(f"{self._namespace}/{marker.LAYOUT_MARKER}", marker.layout_marker(self._layout))
            obstore.list_with_delimiter(self._bucket)

    def read(self, key: BlockKey, into: memoryview) -> None:
        """Fill `into` and verify it; BlockMissing, BlockCorrupt."""
        header = memoryview(bytearray(HEADER_BYTES))
        with unavailable("read", self._named(key)):
            try:
                checksum = self._download(key, header, into)
            except FileNotFoundError:
                raise BlockMissing(f"block {key.hex()} is not stored") from None
        self._format.verify_checksum(key, header, len(into), checksum)

    def write(self, key: BlockKey, block: memoryview) -> None:
        """Put the object by one request; no-op if one of the right size is there."""
        if self.contains(key):
            return
        content = b"".join([self._format.header(key, block), block])  # so the library never looks at `block`
        with unavailable("write", self._named(key)):
            self._put(self.path(key), content)

    def contains(self, key: BlockKey) -> bool:
        """Whether an object of the right size lies there."""
        with unavailable("look up", self._named(key)):
            try:
                return obstore.head(self._bucket, self.path(key))["size"] == self._format.object_bytes
            except FileNotFoundError:
                return False

    def delete(self, key: BlockKey) -> None:
        """Remove the object if it is there."""
        with unavailable("delete", self._named(key)), suppress(FileNotFoundError):
            obstore.delete(self._bucket, self.path(key))

    def batches(self) -> Iterator[list[BlockKey]]:
        """Keys, one page of the service's listing at a time; other objects are passed over."""
        return self._keys(self._namespace)

    def other_layouts(self) -> list[str]:
        """One line for every other layout that has blocks in this place: whose they are and how many."""
        with unavailable("list", self._place):
            names = sorted(obstore.list_with_delimiter(self._bucket)["common_prefixes"])
            others = [name for name in names if marker.is_namespace(name) and name != self._namespace]
            counts = {name: sum(map(len, self._keys(name))) for name in others}
            return [
                marker.describe_blocks(count, name, self._get(f"{name}/{marker.LAYOUT_MARKER}"))
                for name, count in counts.items()
                if count
            ]

    def _download(self, key: BlockKey, header: memoryview, into: memoryview) -> int:
        """Fill header and `into`; returns the checksum of `into`. Whatever happens, it ends when all parts have."""
        (_, first), *others = _cut(into)
        head = self._part(key, 0, [header, first])
        checksum = 0
        pool = ThreadPoolExecutor(PART_GETS, thread_name_prefix="store-part")  # makes threads as parts come
        try:
            filled = [pool.submit(self._part(key, at, [part]).finish) for at, part in others]
            for piece in head.pieces():
                if piece.obj is not header.obj:
                    checksum = crc32(piece, checksum)
            for (_, part), done in zip(others, filled, strict=True):
                done.result()
                checksum = crc32(part, checksum)
        finally:
            pool.shutdown(cancel_futures=True)
        return checksum

    def _part(self, key: BlockKey, start: int, buffers: list[memoryview]) -> Download:
        return Download(
            self._bucket, self.path(key), self._format.object_bytes, start, buffers, retry_s=self._retry_s
        )  # fmt: skip

    def _keys(self, namespace: str) -> Iterator[list[BlockKey]]:
        with unavailable("list", self._place):
            for page in obstore.list(self._bucket, f"{namespace}/", chunk_size=LIST_KEYS):
                names = [item["path"].split("/")[-2:] for item in page]
                yield [key for folder, name in names if (key := marker.key_of(folder, name)) is not None]

    def _get(self, path: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._bucket, path).bytes())
        except FileNotFoundError:
            return None

    def _put(self, path: str, content: bytes) -> None:
        obstore.put(self._bucket, path, content, use_multipart=False)

    def _named(self, key: BlockKey) -> str:
        return f"block {key.hex()} in {self._place}"


def _cut(block: memoryview) -> list[tuple[int, memoryview]]:
    """Parts of about the same length, at most PART_BYTES, each with its place in the object."""
    count = -(-len(block) // PART_BYTES)
    size = -(-len(block) // count)
    return [(HEADER_BYTES + at, block[at : at + size]) for at in range(0, len(block), size)]
