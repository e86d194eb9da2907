"""The node's DRAM buffer: shared memory cut into full-block slots. Who owns which slot is the scheduler's business."""

from collections.abc import Sequence

import numpy as np

from dualpath.core.errors import ConfigError, ProtocolError
from dualpath.core.layout import BlockLayout
from dualpath.core.units import format_bytes
from dualpath.transport.base import Range
from dualpath.transport.memory import SharedMemory

ARENA = "arena"  # the region's name at every node


class Arena:
    """`slots` slots of one full block each. A slot answers to the grant under which it was opened last."""

    def __init__(self, layout: BlockLayout, arena_bytes: int) -> None:
        self.layout = layout
        self.slots = arena_bytes // layout.block_bytes
        if self.slots < 2:
            least = format_bytes(2 * layout.block_bytes)
            raise ConfigError(f"an arena of {format_bytes(arena_bytes)} holds no two blocks; give at least {least}")
        self.memory = SharedMemory.create(self.slots * layout.block_bytes, name="dualpath-arena")
        self.view = self.memory.view
        self.bytes = np.frombuffer(self.view, dtype=np.uint8)
        self._grants = [0] * self.slots

    def slot(self, slot: int) -> memoryview:
        """The bytes of one slot."""
        start = slot * self.layout.block_bytes
        return self.view[start : start + self.layout.block_bytes]

    def block_range(self, slot: int) -> Range:
        """The whole slot as a range of the region."""
        return Range(slot * self.layout.block_bytes, self.layout.block_bytes)

    def open(self, grant: int, slots: Sequence[int]) -> set[int]:
        """From now on these slots answer to this grant only; returns the grants that they answered to before.

        Peers' transfers under those may still be under way: Transport.drained tells when they have ended.
        """
        if slots and not 0 <= min(slots) <= max(slots) < self.slots:
            raise ProtocolError(f"grant {grant} names slots that this arena of {self.slots} slots does not have")
        before = {self._grants[slot] for slot in slots} - {0, grant}
        for slot in slots:
            self._grants[slot] = grant
        return before

    def holds(self, grant: int, slot: int) -> bool:
        """Whether the slot exists and answers to this grant."""
        return 0 <= slot < self.slots and self._grants[slot] == grant

    def revoke_all(self) -> set[int]:
        """No slot answers to any grant any more; returns those that one answered to (see `open`)."""
        before = set(self._grants) - {0}
        self._grants = [0] * self.slots
        return before

    def authorize(self, grant: int, ranges: Sequence[Range]) -> bool:
        """Whether every byte of these ranges lies in a slot that answers to `grant`."""
        if grant <= 0:
            return False
        size = self.layout.block_bytes
        for r in ranges:
            first, last = r.offset // size, (r.offset + max(r.length, 1) - 1) // size
            if last >= self.slots or any(self._grants[slot] != grant for slot in range(first, last + 1)):
                return False
        return True

    def copy(self, source: int, into: int) -> None:
        """One slot's bytes into another slot."""
        size = self.layout.block_bytes
        np.copyto(self.bytes[into * size : (into + 1) * size], self.bytes[source * size : (source + 1) * size])

    def close(self) -> None:
        """Give the memory back."""
        del self.bytes
        self.view = memoryview(b"")
        self.memory.close()
