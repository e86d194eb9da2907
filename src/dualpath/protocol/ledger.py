"""The slot ledger of one node's arena; kept by the scheduler alone.

A slot is taken for a grant (one attempt of a request) and may be *held* beyond it: by a write-back that has not ended,
or by readers that fetch the block from it (retained blocks). It is free again only when nobody holds it.
"""

from collections import deque
from collections.abc import Iterable


class SlotLedger:
    """Free slots and holds of one arena of `slots` slots, `write_slots` of which new grants may not use up."""

    def __init__(self, slots: int, write_slots: int) -> None:
        if not 0 <= write_slots < slots:
            raise ValueError(f"write-back share of {write_slots} slots in an arena of {slots}")
        self.slots = slots
        self.write_slots = write_slots
        self._free: deque[int] = deque(range(slots))
        self._holds: dict[int, int] = {}  # slot -> number of holds, the grant's own included
        self._written_back_late = 0  # slots whose grant is gone and that only wait for their write-back or readers
        self._granted: set[int] = set()

    @property
    def capacity(self) -> int:
        """The most slots that one grant can ever have."""
        return self.slots - self.write_slots

    @property
    def available(self) -> int:
        """Slots that a new grant may take now; the unused part of the write-back share is set aside."""
        return len(self._free) - max(0, self.write_slots - self._written_back_late)

    @property
    def used(self) -> int:
        """Slots that are not free."""
        return self.slots - len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` slots for a grant; the caller has checked `available`."""
        if count > self.available:
            raise ValueError(f"{count} slots wanted, {self.available} available")
        taken = [self._free.popleft() for _ in range(count)]
        for slot in taken:
            self._holds[slot] = 1
        self._granted.update(taken)
        return taken

    def hold(self, slot: int) -> None:
        """Keep a taken slot for one more user."""
        self._holds[slot] += 1

    def drop(self, slot: int) -> None:
        """One user fewer; the last one frees the slot."""
        self._holds[slot] -= 1
        if self._holds[slot] == 0:
            del self._holds[slot]
            if slot not in self._granted:
                self._written_back_late -= 1
            self._granted.discard(slot)
            self._free.append(slot)

    def release(self, slots: Iterable[int]) -> None:
        """The grant gives its slots back; those that others still hold stay out."""
        for slot in slots:
            if self._holds[slot] > 1:
                self._granted.discard(slot)
                self._written_back_late += 1
            self.drop(slot)

    def check(self) -> None:
        """Invariants: every slot is free or held, never both; counts agree."""
        free = set(self._free)
        assert len(free) == len(self._free), "a slot is free twice"
        assert free.isdisjoint(self._holds), "a held slot is free"
        assert len(free) + len(self._holds) == self.slots, "a slot is lost"
        assert all(count > 0 for count in self._holds.values()), "a hold of nobody"
        assert self._written_back_late == len(self._holds.keys() - self._granted), "late write-backs miscounted"
