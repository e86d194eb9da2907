"""The arena: which grant may touch which bytes, against byte-by-byte brute force."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError, ProtocolError
from dualpath.core.layout import BlockLayout
from dualpath.node.arena import Arena
from dualpath.transport.base import Range

LAYOUT = BlockLayout(model="m", n_layers=2, block_tokens=1, token_bytes=4, dtype="float32")
SIZE = LAYOUT.block_bytes
SLOTS = 5

opens = st.lists(st.tuples(st.integers(1, 3), st.sets(st.integers(0, SLOTS - 1), max_size=3)), max_size=6)
ranges = st.lists(st.builds(Range, st.integers(0, (SLOTS + 1) * SIZE), st.integers(0, 2 * SIZE)), max_size=4)


@settings(max_examples=200, deadline=None)
@given(opens, ranges, st.integers(0, 4))
def test_a_grant_may_touch_exactly_the_bytes_of_its_slots(
    opened: list[tuple[int, set[int]]], wanted: list[Range], grant: int
) -> None:
    arena = Arena(LAYOUT, SLOTS * SIZE)
    owner = [0] * (SLOTS * SIZE)
    for who, slots in opened:
        before = arena.open(who, sorted(slots))
        assert before == {owner[s * SIZE] for s in slots} - {0, who}
        for slot in slots:
            owner[slot * SIZE : (slot + 1) * SIZE] = [who] * SIZE

    def allowed(r: Range) -> bool:
        touched = range(r.offset, r.offset + max(1, r.length))  # an empty range must point to an own byte
        return all(b < len(owner) and owner[b] == grant for b in touched)

    assert arena.authorize(grant, wanted) == (grant > 0 and all(allowed(r) for r in wanted))
    arena.close()


def test_after_revoking_all_nothing_is_authorized() -> None:
    arena = Arena(LAYOUT, SLOTS * SIZE)
    arena.open(7, [0, 2])
    arena.open(8, [1])
    assert arena.revoke_all() == {7, 8}
    assert not arena.authorize(7, [arena.block_range(0)])
    assert not arena.authorize(0, [arena.block_range(0)]), "0 is nobody's grant"
    arena.close()


@pytest.mark.parametrize("slots", [[-1], [0, SLOTS]])
def test_slots_that_are_not_there_cannot_be_opened(slots: list[int]) -> None:
    arena = Arena(LAYOUT, SLOTS * SIZE)
    with pytest.raises(ProtocolError, match="does not have"):
        arena.open(1, slots)
    assert not arena.holds(1, 0)
    arena.close()


def test_an_arena_needs_two_blocks() -> None:
    with pytest.raises(ConfigError, match="give at least"):
        Arena(LAYOUT, 2 * SIZE - 1)
