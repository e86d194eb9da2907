"""What wrappers around a store share: everything that they do not change goes through."""

from collections.abc import AsyncIterator, Sequence

from dualpath.core.keys import BlockKey
from dualpath.store.base import Store


class StoreWrapper:
    """Passes every call on to `inner`; subclasses change some."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    async def open(self) -> None:
        """Open the inner store."""
        await self.inner.open()

    async def read(self, key: BlockKey, into: memoryview) -> None:
        """Read from the inner store."""
        await self.inner.read(key, into)

    async def write(self, key: BlockKey, block: memoryview) -> None:
        """Write to the inner store."""
        await self.inner.write(key, block)

    async def contains(self, key: BlockKey) -> bool:
        """Ask the inner store."""
        return await self.inner.contains(key)

    async def longest_prefix(self, keys: Sequence[BlockKey]) -> int:
        """Ask the inner store."""
        return await self.inner.longest_prefix(keys)

    async def delete(self, key: BlockKey) -> None:
        """Delete from the inner store."""
        await self.inner.delete(key)

    def keys(self) -> AsyncIterator[BlockKey]:
        """All keys of the inner store."""
        return self.inner.keys()

    async def close(self) -> None:
        """Close the inner store."""
        await self.inner.close()
