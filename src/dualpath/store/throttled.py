"""A store behind a storage NIC (paper section 2) of a given rate: how one machine plays several nodes."""

import asyncio
import time

from dualpath.core.keys import BlockKey
from dualpath.core.layout import BlockLayout
from dualpath.core.pacing import LinkClock
from dualpath.core.units import NS_PER_S
from dualpath.store.base import Store
from dualpath.store.wrapper import StoreWrapper


class ThrottledStore(StoreWrapper):
    """Reads and writes take as long as their payload needs on the link; None = no limit.

    Full duplex, no burst credit. The real operation runs within the reserved time, so keep at least two
    outstanding to fill the link. An operation that fails says so at once and its reservation stays.
    Look-ups are free.
    """

    def __init__(
        self, inner: Store, layout: BlockLayout, read_bytes_per_s: int | None, write_bytes_per_s: int | None
    ) -> None:
        super().__init__(inner)
        self.read_bytes = 0  # payload of completed reads
        self.written_bytes = 0  # payload of completed writes that moved bytes
        self._block_bytes = layout.block_bytes
        self._read_link = LinkClock(read_bytes_per_s)
        self._write_link = LinkClock(write_bytes_per_s)

    async def read(self, key: BlockKey, into: memoryview) -> None:
        """Read; done when the block's last byte has passed the link."""
        end_ns = self._read_link.reserve(self._block_bytes, time.monotonic_ns())
        await self.inner.read(key, into)
        await _sleep_until(end_ns)
        self.read_bytes += self._block_bytes

    async def write(self, key: BlockKey, block: memoryview) -> None:
        """Write; done when the block's last byte has passed the link. A stored block moves no bytes."""
        if await self.inner.contains(key):
            await self.inner.write(key, block)
            return
        end_ns = self._write_link.reserve(self._block_bytes, time.monotonic_ns())
        await self.inner.write(key, block)
        await _sleep_until(end_ns)
        self.written_bytes += self._block_bytes


async def _sleep_until(end_ns: int) -> None:
    remaining_ns = end_ns - time.monotonic_ns()
    if remaining_ns > 0:
        await asyncio.sleep(remaining_ns / NS_PER_S)
