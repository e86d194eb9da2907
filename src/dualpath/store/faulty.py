"""A store that fails on purpose, the same way for the same seed: for tests of the whole system."""

import asyncio
import random

from dualpath.core.errors import BlockCorrupt, BlockMissing, StoreUnavailable
from dualpath.core.keys import BlockKey
from dualpath.store.base import Store
from dualpath.store.wrapper import StoreWrapper

_GARBAGE = b"\xa5"


class FaultyStore(StoreWrapper):
    """Rates are the shares of reads (or writes) that fail in that way; one draw from `rng` decides each.

    A failed read leaves garbage in the buffer, so that a caller who uses it is found out. Every read and
    write starts after `delay_s`.
    """

    def __init__(
        self, inner: Store, rng: random.Random, *, read_error_rate: float = 0.0, corrupt_rate: float = 0.0,
        missing_rate: float = 0.0, write_error_rate: float = 0.0, delay_s: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(inner)
        if min(read_error_rate, corrupt_rate, missing_rate, write_error_rate, delay_s) < 0:
            raise ValueError("rates and delay cannot be negative")
        if read_error_rate + corrupt_rate + missing_rate > 1 or write_error_rate > 1:
            raise ValueError("the failing share of reads, and of writes, cannot exceed 1")
        self._rng = rng
        self._read_below = read_error_rate
        self._corrupt_below = read_error_rate + corrupt_rate
        self._missing_below = read_error_rate + corrupt_rate + missing_rate
        self._write_below = write_error_rate
        self._delay_s = delay_s

    async def read(self, key: BlockKey, into: memoryview) -> None:
        """Read, or fail with StoreUnavailable, BlockCorrupt or BlockMissing."""
        draw = self._rng.random()
        await asyncio.sleep(self._delay_s)
        await self.inner.read(key, into)
        if draw >= self._missing_below:
            return
        into.cast("B")[:] = _GARBAGE * into.nbytes
        if draw < self._read_below:
            raise StoreUnavailable(f"injected: read error of block {key.hex()}")
        if draw < self._corrupt_below:
            raise BlockCorrupt(f"injected: block {key.hex()} is corrupt")
        raise BlockMissing(f"injected: block {key.hex()} is missing")

    async def write(self, key: BlockKey, block: memoryview) -> None:
        """Write, or fail with StoreUnavailable and store nothing."""
        draw = self._rng.random()
        await asyncio.sleep(self._delay_s)
        if draw < self._write_below:
            raise StoreUnavailable(f"injected: write error of block {key.hex()}")
        await self.inner.write(key, block)
