"""The prefix index against a plain oracle: every block's state told by the list of all that happened."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.ids import NodeId
from dualpath.scheduler.index import Held, PrefixIndex

KEYS = [bytes([n]) * 16 for n in range(6)]
NODES = [NodeId("d0"), NodeId("d1")]

keys = st.sampled_from(KEYS)
nodes = st.sampled_from(NODES)
slots = st.integers(0, 2)
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("durable"), keys),
        st.tuples(st.just("hold"), keys, nodes, slots),
        st.tuples(st.just("written"), keys, nodes, slots, st.booleans()),
        st.tuples(st.just("forget"), keys),
        st.tuples(st.just("lose"), nodes),
    ),
    max_size=25,
)


class Oracle:
    """One key's state; the same words, told key by key."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.durable = False
        self.held: Held | None = None

    def see(self, what: str, *args: object) -> None:
        if what == "lose":
            self.held = None if self.held and self.held.node == args[0] else self.held
        elif args[0] == self.key:
            getattr(self, f"on_{what}")(*args[1:])

    def on_durable(self) -> None:
        self.durable = True

    def on_hold(self, node: NodeId, slot: int) -> None:
        if not self.durable and self.held is None:
            self.held = Held(node, slot, grant=slot + 1)

    def on_written(self, node: NodeId, slot: int, durable: bool) -> None:
        if durable:
            self.durable, self.held = True, None
        elif self.held and (self.held.node, self.held.slot) == (node, slot):
            self.held = None

    def on_forget(self) -> None:
        self.durable = False


def tell(index: PrefixIndex, what: str, *args: object) -> None:
    if what == "durable":
        index.add_durable([args[0]])  # type: ignore[list-item]
    elif what == "hold":
        key, node, slot = args
        index.hold(key, Held(node, slot, grant=slot + 1))  # type: ignore[arg-type,operator]
    elif what == "written":
        key, node, slot, durable = args
        index.written(key, node, slot, durable=durable)  # type: ignore[arg-type]
    elif what == "forget":
        index.forget([args[0]])  # type: ignore[list-item]
    else:
        index.lose_node(args[0])  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(happenings)
def test_the_index_agrees_with_the_oracle(seen: list[tuple]) -> None:  # type: ignore[type-arg]
    index, oracle = PrefixIndex(), [Oracle(key) for key in KEYS]
    for happening in seen:
        tell(index, *happening)
        for state in oracle:
            state.see(*happening)
    assert [index.knows(k) for k in KEYS] == [s.durable or s.held is not None for s in oracle]
    assert index.pending == sum(s.held is not None for s in oracle)
    hit = index.look_up(KEYS)
    known = [s.durable or s.held is not None for s in oracle]
    assert hit.blocks == (known.index(False) if False in known else len(KEYS))
    expected = {b: s.held for b, s in enumerate(oracle[: hit.blocks]) if not s.durable}
    assert {r.block: Held(r.node, r.slot, r.grant) for r in hit.retained} == expected
