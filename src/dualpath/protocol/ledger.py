"""The slot ledger of one node's arena; kept by the scheduler alone.

A slot is taken for a grant (one attempt of a request) and may be *held* beyond it: by a write-back that has not ended,
or by readers that fetch the block from it (retained blocks). It is free again only when nobody holds it.
"""

from collections import Counter, deque
from collections.abc import Iterable


class SlotLedger:
    """Free slots and holds of one arena of `slots` slots, `write_slots` of which new grants may not use up."""

    def __init__(self, slots: int, write_slots: int) -> None:
        if not 0 <= write_slots < slots:
            raise ValueError(f"write-back share of {write_slots} slots in an arena of {slots}; leave at least one slot")
        self.slots = slots
        self.write_slots = write_slots
        self._free: deque[int] = deque(range(slots))
        self._holds: dict[int, int] = {}  # slot -> number of holds, the grant's own included
        self._filled_by: dict[int, int] = {}  # slot that is not free -> the grant that it was taken for
        self._writes: Counter[int] = Counter()  # slot -> write-backs that have not ended
        self._granted: set[int] = set()  # slots whose grant has not given them back

    @property
    def capacity(self) -> int:
        """The most slots that one grant can ever have."""
        return self.slots - self.write_slots

    @property
    def available(self) -> int:
        """Slots that a new grant may take now; the unused part of the write-back share is set aside."""
        return len(self._free) - max(0, self.write_slots - self.lingering)

    @property
    def lingering(self) -> int:
        """Slots whose grant is gone and that only wait for their write-back or readers."""
        return len(self._holds) - len(self._granted)

    @property
    def used(self) -> int:
        """Slots that are not free."""
        return self.slots - len(self._free)

    def holds(self, slot: int, grant: int) -> bool:
        """Whether the slot still has what this grant brought there."""
        return self._filled_by.get(slot) == grant

    def take(self, count: int, grant: int) -> list[int]:
        """`count` slots for a grant, the longest free first; the caller has checked `available`."""
        if count > self.available:
            raise ValueError(f"{count} slots wanted, {self.available} available")
        taken = [self._free.popleft() for _ in range(count)]
        for slot in taken:
            self._holds[slot] = 1
            self._filled_by[slot] = grant
        self._granted.update(taken)
        return taken

    def hold(self, slot: int) -> None:
        """Keep a slot that is not free for one more user."""
        self._holds[slot] += 1

    def drop(self, slot: int) -> None:
        """One user fewer; the last one frees the slot."""
        self._holds[slot] -= 1
        if self._holds[slot] == 0:
            del self._holds[slot], self._filled_by[slot]
            self._free.append(slot)

    def release(self, slots: Iterable[int]) -> None:
        """The grant gives its slots back; those that others still hold stay out."""
        for slot in slots:
            self._granted.remove(slot)
            self.drop(slot)

    def begin_write(self, slot: int) -> None:
        """Keep the slot until its write-back has ended."""
        self.hold(slot)
        self._writes[slot] += 1

    def end_write(self, slot: int) -> None:
        """A write-back ended; one that this ledger never saw begin (the node joined again) changes nothing."""
        if self._writes[slot] > 0:
            self._writes[slot] -= 1
            self.drop(slot)

    def check(self) -> None:
        """Invariants: every slot is free or held, never both; counts agree."""
        free = set(self._free)
        assert len(free) == len(self._free), "a slot is free twice"
        assert free.isdisjoint(self._holds), "a held slot is free"
        assert len(free) + len(self._holds) == self.slots, "a slot is lost"
        assert self._filled_by.keys() == self._holds.keys(), "a held slot of no grant"
        assert self._granted <= self._holds.keys(), "a granted slot is free"
        for slot, holds in self._holds.items():
            assert holds >= max(1, (slot in self._granted) + self._writes[slot]), f"slot {slot} lacks holds"
