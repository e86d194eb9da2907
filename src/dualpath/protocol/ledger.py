"""The slot ledger of one node's arena; kept by the scheduler alone.

A slot is taken for a grant (one attempt of a request) and may be *held* beyond it: by a write-back that has not ended,
or by readers that fetch the block from it (retained blocks). It is free again only when nobody holds it.

Slots are taken and given back in runs, so that a grant of 500 slots costs a few steps; what is kept for each slot is
kept in flat arrays.
"""

from array import array
from collections import Counter
from collections.abc import Iterator

from dualpath.core.runs import Run, Runs

_NOBODY = -1


class SlotLedger:
    """Free slots and holds of one arena of `slots` slots, `write_slots` of which new grants may not use up."""

    def __init__(self, slots: int, write_slots: int) -> None:
        if not 0 <= write_slots < slots:
            raise ValueError(f"write-back share of {write_slots} slots in an arena of {slots}; leave at least one slot")
        self.slots = slots
        self.write_slots = write_slots
        self._free_from: dict[int, int] = {0: slots}  # runs of free slots: start -> stop, the longest free first
        self._free_to: dict[int, int] = {slots: 0}  # the same runs: stop -> start
        self._free = slots
        self._lingering = 0
        self._filled_by = array("q", [_NOBODY]) * slots  # the grant that a slot was taken for, unless it is free
        self._granted = bytearray(slots)  # 1: its grant has not given it back
        self._held = bytearray(slots)  # 1: somebody holds it besides its grant
        self._holds: Counter[int] = Counter()  # slot -> how many do
        self._writes: Counter[int] = Counter()  # slot -> write-backs that have not ended

    @property
    def capacity(self) -> int:
        """The most slots that one grant can ever have."""
        return self.slots - self.write_slots

    @property
    def available(self) -> int:
        """Slots that a new grant may take now; the unused part of the write-back share is set aside."""
        return self._free - max(0, self.write_slots - self._lingering)

    @property
    def lingering(self) -> int:
        """Slots whose grant is gone and that only wait for their write-back or readers."""
        return self._lingering

    @property
    def used(self) -> int:
        """Slots that are not free."""
        return self.slots - self._free

    def is_free(self, slot: int) -> bool:
        """Whether nobody has the slot."""
        return self._filled_by[slot] == _NOBODY

    def holds(self, slot: int, grant: int) -> bool:
        """Whether the slot still has what this grant brought there."""
        return 0 <= slot < self.slots and self._filled_by[slot] == grant

    def take(self, count: int, grant: int) -> Runs:
        """`count` slots for a grant, from the runs that have been free for longest; the caller checked `available`."""
        if count > self.available:
            raise ValueError(f"{count} slots wanted, {self.available} available")
        taken: list[Run] = []
        left = count
        while left:
            start, length = self._take_run(left)
            taken.append((start, length))
            self._filled_by[start : start + length] = array("q", (grant,)) * length
            self._granted[start : start + length] = b"\1" * length
            left -= length
        self._free -= count
        return Runs(taken)

    def _take_run(self, most: int) -> Run:
        """The end of the oldest free run; what is left of it stays the oldest."""
        start, stop = next(iter(self._free_from.items()))
        del self._free_to[stop]
        begin = max(start, stop - most)
        if begin == start:
            del self._free_from[start]
        else:
            self._free_from[start] = begin
            self._free_to[begin] = start
        return begin, stop - begin

    def _give_run(self, start: int, stop: int) -> None:
        """Free slots again, in one run with the free ones before and after them."""
        self._free += stop - start
        self._filled_by[start:stop] = array("q", (_NOBODY,)) * (stop - start)
        before = self._free_to.pop(start, None)
        if before is not None:
            del self._free_from[before]
            start = before
        after = self._free_from.pop(stop, None)
        if after is not None:
            del self._free_to[after]
            stop = after
        self._free_from[start] = stop
        self._free_to[stop] = start

    def hold(self, slot: int) -> None:
        """Keep a slot that is not free for one more user."""
        assert not self.is_free(slot), f"slot {slot} is free, there is nothing to keep"
        self._held[slot] = 1
        self._holds[slot] += 1

    def drop(self, slot: int) -> None:
        """One such user fewer; the last one frees the slot, unless its grant still has it."""
        self._holds[slot] -= 1
        if self._holds[slot] == 0:
            del self._holds[slot]
            self._held[slot] = 0
            if not self._granted[slot]:
                self._lingering -= 1
                self._give_run(slot, slot + 1)

    def release(self, slots: Runs) -> None:
        """The grant gives its slots back; those that others still hold stay out."""
        for start, length in slots.runs:
            stop = start + length
            assert self._granted.find(0, start, stop) < 0, f"slots {start}..{stop - 1} are not all some grant's"
            self._granted[start:stop] = bytes(length)
            while start < stop:
                held = self._held.find(1, start, stop)
                if held < 0:
                    held = stop
                else:
                    self._lingering += 1
                if held > start:
                    self._give_run(start, held)
                start = held + 1

    def begin_write(self, slot: int) -> None:
        """Keep the slot until its write-back has ended."""
        self.hold(slot)
        self._writes[slot] += 1

    def end_write(self, slot: int) -> None:
        """A write-back ended; one that this ledger never saw begin (the node joined again) changes nothing."""
        if self._writes[slot] > 0:
            self._writes[slot] -= 1
            if self._writes[slot] == 0:
                del self._writes[slot]
            self.drop(slot)

    def check(self) -> None:
        """Invariants: every slot is free or held, never both; counts agree."""
        free = set(self._free_slots())
        assert len(free) == self._free == sum(b - a for a, b in self._free_from.items()), "a slot is lost or free twice"
        assert self._free_to == {stop: start for start, stop in self._free_from.items()}, "free runs disagree"
        assert not self._free_from.keys() & self._free_to.keys(), "free runs that touch are not one"
        assert {s for s in range(self.slots) if self._held[s]} == set(self._holds), "holds disagree"
        lingering = 0
        for slot in range(self.slots):
            wanted = self._granted[slot] or self._held[slot]
            assert bool(wanted) == (slot not in free), f"slot {slot} is both free and wanted, or neither"
            assert self.is_free(slot) == (slot in free), f"slot {slot} is of a grant and free, or neither"
            assert self._holds.get(slot, 0) >= self._writes.get(slot, 0), f"slot {slot} lacks holds"
            lingering += bool(self._held[slot]) and not self._granted[slot]
        assert lingering == self._lingering, "lingering slots are miscounted"

    def _free_slots(self) -> Iterator[int]:
        return (slot for start, stop in self._free_from.items() for slot in range(start, stop))
