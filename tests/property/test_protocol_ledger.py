"""The slot ledger against an oracle: for every slot, the list of those who still want it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dualpath.core.runs import Runs
from dualpath.protocol.ledger import SlotLedger

SLOTS, WRITE_SLOTS = 8, 3


class LedgerMachine(RuleBasedStateMachine):
    """Grants take and release; write-backs and readers hold slots, also beyond their grant."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = SlotLedger(SLOTS, WRITE_SLOTS)
        self.users: dict[int, list[str]] = {slot: [] for slot in range(SLOTS)}
        self.grants: dict[int, Runs] = {}
        self.filled_by: dict[int, int] = {}
        self.grant = 0

    def _slots_with(self, user: str) -> list[int]:
        return [slot for slot, users in self.users.items() if user in users]

    @property
    def _available(self) -> int:
        lingering = sum(bool(users) and "grant" not in users for users in self.users.values())
        return sum(not users for users in self.users.values()) - max(0, WRITE_SLOTS - lingering)

    @rule(wanted=st.integers(0, SLOTS))
    def take(self, wanted: int) -> None:
        assert self.ledger.available == self._available
        self.grant += 1
        if wanted > self._available:
            try:
                self.ledger.take(wanted, self.grant)
            except ValueError:
                return
            raise AssertionError("more slots than are available")
        self.grants[self.grant] = self.ledger.take(wanted, self.grant)
        assert len(set(self.grants[self.grant])) == len(self.grants[self.grant]) == wanted
        for slot in self.grants[self.grant]:
            assert not self.users[slot], "a slot that somebody uses was handed out"
            self.users[slot].append("grant")
            self.filled_by[slot] = self.grant

    @precondition(lambda self: self.grants)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(sorted(self.grants)))
        slots = self.grants.pop(grant)
        self.ledger.release(slots)
        for slot in slots:
            self.users[slot].remove("grant")

    @precondition(lambda self: any(self.users.values()))
    @rule(data=st.data(), user=st.sampled_from(["reader", "write"]))
    def hold(self, data: st.DataObject, user: str) -> None:
        slot = data.draw(st.sampled_from([slot for slot, users in self.users.items() if users]))
        (self.ledger.hold if user == "reader" else self.ledger.begin_write)(slot)
        self.users[slot].append(user)

    @precondition(lambda self: self._slots_with("reader"))
    @rule(data=st.data())
    def reader_drops(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self._slots_with("reader")))
        self.ledger.drop(slot)
        self.users[slot].remove("reader")

    @rule(slot=st.integers(0, SLOTS - 1))
    def write_ends(self, slot: int) -> None:
        self.ledger.end_write(slot)  # also for slots that are not being written
        if "write" in self.users[slot]:
            self.users[slot].remove("write")

    @invariant()
    def agrees(self) -> None:
        self.ledger.check()
        assert self.ledger.used == sum(bool(users) for users in self.users.values())
        for slot, users in self.users.items():
            assert self.ledger.holds(slot, self.filled_by.get(slot, 0)) == bool(users)
            assert self.ledger.is_free(slot) == (not users)
            assert not self.ledger.holds(slot, self.grant + 1)


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase
