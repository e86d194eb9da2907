"""The prefix index against a plain oracle: every block's state told by the list of all that happened."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.ids import NodeId
from dualpath.scheduler.index import Held, PrefixIndex
from dualpath.scheduler.keyset import KeySet

KEYS = [bytes([n]) * 16 for n in range(6)]
CHAINS = [KEYS[:5], KEYS[:2] + KEYS[5:]]  # two prompts with a common beginning
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
        st.tuples(st.sampled_from(["fill", "look"]), st.sampled_from(CHAINS)),
    ),
    max_size=40,
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


def assert_hit(index: PrefixIndex, oracle: list[Oracle], chain: list[bytes]) -> None:
    hit = index.look_up(chain)
    states = [s for s in oracle if s.key in chain]
    known = [s.durable or s.held is not None for s in states]
    assert hit.blocks == (known.index(False) if False in known else len(chain))
    expected = {b: s.held for b, s in enumerate(states[: hit.blocks]) if not s.durable}
    assert {r.block: Held(r.node, r.slot, r.grant) for r in hit.retained} == expected


@settings(max_examples=400, deadline=None)
@given(happenings)
def test_the_index_agrees_with_the_oracle(seen: list[tuple]) -> None:  # type: ignore[type-arg]
    index, oracle = PrefixIndex(), [Oracle(key) for key in KEYS]
    for what, *args in seen:
        if what == "look":
            assert_hit(index, oracle, args[0])
            continue
        for happening in [("durable", key) for key in args[0]] if what == "fill" else [(what, *args)]:
            tell(index, *happening)
            for state in oracle:
                state.see(*happening)
    assert [index.knows(k) for k in KEYS] == [s.durable or s.held is not None for s in oracle]
    assert index.pending == sum(s.held is not None for s in oracle)
    assert len(index) == sum(s.durable for s in oracle) + index.pending
    for chain in CHAINS:
        assert_hit(index, oracle, chain)


words = st.tuples(st.sampled_from(["add", "add", "discard", "close"]), st.integers(0, 400))


@settings(max_examples=60, deadline=None)
@given(st.lists(words, max_size=300))
def test_a_key_set_is_a_set_whose_keys_may_be_marked(seen: list[tuple[str, int]]) -> None:
    keys = KeySet()
    plain: dict[bytes, bool] = {}
    for what, number in seen:
        key = (number << 17).to_bytes(8, "little") + bytes(8)  # all fall into one table
        if what == "add":
            keys.add(key)
            plain.setdefault(key, False)
        elif what == "discard":
            assert keys.discard(key) == (plain.pop(key, None) is not None)
        elif key in plain:
            keys.close(key)
            plain[key] = True
        assert (key in keys, keys.is_closed(key)) == (key in plain, plain.get(key, False))
        assert len(keys) == len(plain)
    assert all(key in keys and keys.is_closed(key) == closed for key, closed in plain.items())


def test_the_set_holds_more_than_it_needs_memory_for() -> None:
    keys = KeySet(number.to_bytes(8, "little") * 2 for number in range(0, 2_000_000, 2))
    assert len(keys) == 1_000_000
    assert keys.nbytes() < 25_000_000  # small tables; 13 bytes each with more keys
    assert (1_000_000).to_bytes(8, "little") * 2 in keys
    assert (2_000_000).to_bytes(8, "little") * 2 not in keys
