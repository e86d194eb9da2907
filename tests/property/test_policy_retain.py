"""Retention against an oracle that keeps single blocks with the time of their session's last end."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.ids import NodeId
from dualpath.core.plan import BlockRange
from dualpath.policy.retain import Evicted, Kept, Retention

NODES = [NodeId("d0"), NodeId("d1")]
sessions = st.sampled_from("abcde")
keeps = st.tuples(st.just("keep"), sessions, st.sampled_from(NODES), st.integers(0, 14))
takes = st.tuples(st.just("take"), sessions)
losses = st.tuples(st.just("lose"), st.sampled_from(NODES))
steps = st.lists(keeps | keeps | takes | losses, max_size=30)


class Oracle:
    """A set of (session, node, block); the least recent block is the first to go, of a session the last block."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: set[tuple[str, NodeId, int]] = set()
        self.ended: dict[str, int] = {}

    def keep(self, session: str, node: NodeId, blocks: int, now: int) -> None:
        self.take(session)
        self.ended[session] = now
        self.blocks |= {(session, node, b) for b in range(min(blocks, self.capacity))}
        while len(on_node := [x for x in self.blocks if x[1] == node]) > self.capacity:
            self.blocks.discard(min(on_node, key=lambda x: (self.ended[x[0]], -x[2])))

    def take(self, session: str) -> None:
        self.blocks = {x for x in self.blocks if x[0] != session}

    def lose(self, node: NodeId) -> None:
        self.blocks = {x for x in self.blocks if x[1] != node}


def blocks_of(retention: Retention) -> set[tuple[str, NodeId, int]]:
    found = [(session, retention.find(session)) for session in "abcde"]
    return {(session, kept.node, b) for session, kept in found if kept for b in range(kept.blocks)}


@settings(max_examples=400, deadline=None)
@given(steps, st.integers(0, 20))
def test_it_keeps_what_the_oracle_keeps_and_says_what_goes(script: list[tuple], capacity: int) -> None:
    retention, oracle = Retention(capacity), Oracle(capacity)
    for now, (kind, *arguments) in enumerate(script):
        before = blocks_of(retention)
        if kind == "keep":
            session, node, blocks = arguments
            evicted = retention.keep(session, node, blocks)
            oracle.keep(session, node, blocks, now)
            gone = {(e.session, e.node, b) for e in evicted for b in range(e.blocks.start, e.blocks.stop)}
            new = {(session, node, b) for b in range(min(blocks, capacity))}
            assert blocks_of(retention) == (before - gone) | new
            assert gone <= before and not gone & new
        elif kind == "take":
            assert retention.take(*arguments) == (retention_before(before, *arguments))
            oracle.take(*arguments)
        else:
            retention.lose(*arguments)
            oracle.lose(*arguments)
        assert blocks_of(retention) == oracle.blocks


def retention_before(before: set[tuple[str, NodeId, int]], session: str) -> Kept | None:
    own = [(node, b) for s, node, b in before if s == session]
    return Kept(own[0][0], len(own)) if own else None


def test_the_oldest_session_loses_its_end_first() -> None:
    retention = Retention(10)
    assert retention.keep("a", NODES[0], 6) == []
    assert retention.keep("b", NODES[0], 4) == []
    assert retention.keep("c", NODES[0], 3) == [Evicted("a", NODES[0], BlockRange(3, 6))]
    assert retention.find("a") == Kept(NODES[0], 3)
    assert retention.keep("b", NODES[1], 5) == [Evicted("b", NODES[0], BlockRange(0, 4))]
    assert retention.keep("d", NODES[0], 7) == [Evicted("a", NODES[0], BlockRange(0, 3))]
