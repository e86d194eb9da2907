"""The contract that every store fulfils; `dualpath.testing.store` is its executable form."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from dualpath.core.keys import BlockKey


class Store(Protocol):
    """Blocks of one layout. Errors: BlockMissing, BlockCorrupt, StoreUnavailable; open() also ConfigError.

    A key or buffer of the wrong length is the caller's bug: ValueError.
    """

    async def open(self) -> None:
        """Check that the store is usable (exists, is writable); StoreUnavailable or ConfigError if not."""

    async def read(self, key: BlockKey, into: memoryview) -> None:
        """Fill `into` (exactly block_bytes) with the block; on any error its content must not be used.

        Returns, also with an error or when cancelled, only once nobody writes to `into` any more.
        """

    async def write(self, key: BlockKey, block: memoryview) -> None:
        """Store the block atomically and durably; writing a key again is a no-op that succeeds.

        Returns, also with an error or when cancelled, only once nobody reads `block` any more.
        """

    async def contains(self, key: BlockKey) -> bool:
        """Whether a block lies under this key; says nothing of its checksum."""

    async def longest_prefix(self, keys: Sequence[BlockKey]) -> int:
        """How many of these chained keys are stored from the first on; may assume closed prefixes."""

    async def delete(self, key: BlockKey) -> None:
        """Forget a block (a corrupt one, say); absent keys are no error."""

    def keys(self) -> AsyncIterator[BlockKey]:
        """All stored keys in any order; blocks written meanwhile may or may not appear."""

    async def close(self) -> None:
        """Let go of threads and files; the store is not used afterwards."""
