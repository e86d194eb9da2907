"""Blocks in this process's memory, for tests and trials of one process."""

from collections.abc import AsyncIterator, Sequence

from dualpath.core.errors import BlockMissing
from dualpath.core.keys import BlockKey
from dualpath.core.layout import BlockLayout
from dualpath.store.format import HEADER_BYTES, BlockFormat
from dualpath.store.prefix import longest_prefix


class MemoryStore:
    """Keeps whole encoded objects in `objects`, where a test may damage them."""

    def __init__(self, layout: BlockLayout) -> None:
        self.objects: dict[BlockKey, bytes] = {}
        self._format = BlockFormat(layout)

    async def open(self) -> None:
        """Nothing to check."""

    async def read(self, key: BlockKey, into: memoryview) -> None:
        """Verify the object, then copy it into `into`."""
        self._format.check_key(key)
        target = self._format.target(into)
        try:
            stored = self.objects[key]
        except KeyError:
            raise BlockMissing(f"block {key.hex()} is not stored") from None
        payload = memoryview(stored)[HEADER_BYTES:]
        self._format.verify(key, stored[:HEADER_BYTES], payload)
        target[:] = payload

    async def write(self, key: BlockKey, block: memoryview) -> None:
        """Keep a copy of the block unless the key is there."""
        self._format.check_key(key)
        payload = self._format.source(block)
        if key not in self.objects:
            self.objects[key] = self._format.header(key, payload) + bytes(payload)

    async def contains(self, key: BlockKey) -> bool:
        """Whether the key is there."""
        self._format.check_key(key)
        return key in self.objects

    async def longest_prefix(self, keys: Sequence[BlockKey]) -> int:
        """Length of the stored prefix, by binary search."""
        return await longest_prefix(keys, self.contains)

    async def delete(self, key: BlockKey) -> None:
        """Forget a block; absent keys are no error."""
        self._format.check_key(key)
        self.objects.pop(key, None)

    async def keys(self) -> AsyncIterator[BlockKey]:
        """All keys of this moment."""
        for key in list(self.objects):
            yield key

    async def close(self) -> None:
        """Nothing to let go of; the blocks stay, so that a test may open the store again."""
