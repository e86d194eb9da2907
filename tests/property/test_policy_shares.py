"""Plans over three nodes, and plans that leave out what is computed sooner: against enumeration, exactly."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.ids import NodeId
from dualpath.core.plan import BlockRange
from dualpath.policy.loads import NodeLoad, ReadChoice
from dualpath.policy.read import READ_POLICIES, any_node, load_or_recompute, split
from dualpath.policy.shares import even_shares

P, D, S = NodeId("p0"), NodeId("d0"), NodeId("d1")
CLOSE = 1 + Fraction(1, 10**12)
queue_tokens = st.integers(0, 5) | st.integers(0, 10**5)
known_rates = st.sampled_from([0.25, 1.0, 2.0, 7.5, 1e6]) | st.floats(1e-2, 1e8)


def loads(node: NodeId, rates: st.SearchStrategy[float] = known_rates) -> st.SearchStrategy[NodeLoad]:
    return st.builds(NodeLoad, st.just(node), queue_tokens, rates)


pairs = st.tuples(loads(P), loads(D))


def read_end_s(nodes: Sequence[NodeLoad], shares: Sequence[int], block_tokens: int) -> Fraction:
    """When the last of those who read is through."""
    ends = [
        (n.read_queue_tokens + k * block_tokens) / Fraction(n.read_tokens_per_s)
        for n, k in zip(nodes, shares, strict=True)
        if k
    ]
    return max(ends, default=Fraction(0))


def soonest_s(nodes: Sequence[NodeLoad], blocks: int, block_tokens: int) -> Fraction:
    """The oracle: all ways to share."""
    every = (k for k in product(range(blocks + 1), repeat=len(nodes)) if sum(k) == blocks)
    return min(read_end_s(nodes, k, block_tokens) for k in every)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(queue_tokens, known_rates), min_size=1, max_size=3), st.integers(0, 9), st.sampled_from([1, 64])
)
def test_shares_end_soonest(nodes: list[tuple[int, float]], blocks: int, tokens: int) -> None:
    some = [NodeLoad(NodeId(str(i)), queue, rate) for i, (queue, rate) in enumerate(nodes)]
    shares, end_s = even_shares(some, blocks, tokens)
    assert sum(shares) == blocks and min(shares) >= 0
    best = soonest_s(some, blocks, tokens)
    assert read_end_s(some, shares, tokens) <= best * CLOSE
    assert best / CLOSE <= Fraction(end_s) <= best * CLOSE


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 9), loads(P), loads(D), st.none() | loads(S), st.integers(0, 3))
def test_any_node_ends_soonest_and_spares_the_spare(
    blocks: int, prefill: NodeLoad, decode: NodeLoad, spare: NodeLoad | None, start: int
) -> None:
    choice = ReadChoice(BlockRange(start, start + blocks), prefill, decode, 8, 0, spare)
    plan = any_node(choice)
    assert plan.covers(choice.hit)
    assert [n for n in (P, S, D) if plan.blocks_by(n)] == [s.reader for s in plan.segments]
    pair = [prefill, decode]
    nodes = [*pair, spare] if spare else pair
    end_s = read_end_s(nodes, [plan.blocks_by(n.node) for n in nodes], 8)
    assert end_s <= soonest_s(nodes, blocks, 8) * CLOSE
    if plan.blocks_by(S) == 0:
        assert plan == split(choice)
    else:
        assert end_s < soonest_s(pair, blocks, 8) * CLOSE


def test_the_spare_must_be_better_not_equal() -> None:
    idle = [NodeLoad(n, 0, 1.0) for n in (P, D, S)]
    two = any_node(ReadChoice(BlockRange(0, 2), idle[0], idle[1], 1, 0, idle[2]))
    assert [two.blocks_by(n) for n in (P, D, S)] == [1, 1, 0]
    three = any_node(ReadChoice(BlockRange(0, 3), idle[0], idle[1], 1, 0, idle[2]))
    assert [three.blocks_by(n) for n in (P, D, S)] == [1, 1, 1]


def test_any_node_with_one_node_in_both_roles() -> None:
    busy, spare = NodeLoad(P, 100, 1.0), NodeLoad(S, 0, 1.0)
    plan = any_node(ReadChoice(BlockRange(0, 4), busy, busy, 1, 0, spare))
    assert (plan.blocks_by(P), plan.blocks_by(S)) == (0, 4)


def prefill_end_s(choice: ReadChoice, cut: int) -> Fraction:
    """When the prefill ends that reads `cut` blocks (in the best shares) and computes the others."""
    same = choice.prefill.node == choice.decode.node
    nodes = [choice.prefill] if same else [choice.prefill, choice.decode]
    start_s = max(soonest_s(nodes, cut, choice.block_tokens), Fraction(choice.compute_wait_s))
    computed = (len(choice.hit) - cut) * choice.block_tokens
    return start_s + computed / Fraction(choice.compute_tokens_per_s)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 24), pairs, st.booleans(), st.sampled_from([0.0, 1.0]) | st.floats(0, 1e4), known_rates,
    st.sampled_from([1, 64]), st.integers(0, 3),
)  # fmt: skip
def test_load_or_recompute_ends_soonest_over_all_cuts(
    blocks: int, pair: tuple[NodeLoad, NodeLoad], same: bool, wait_s: float, rate: float, tokens: int, start: int
) -> None:
    prefill, decode = pair[0], pair[0] if same else pair[1]
    choice = ReadChoice(
        BlockRange(start, start + blocks), prefill, decode, tokens, 0, compute_wait_s=wait_s, compute_tokens_per_s=rate
    )
    plan = load_or_recompute(choice)
    cut = sum(len(s.blocks) for s in plan.segments)
    kept = BlockRange(start, start + cut)
    assert plan.covers(kept)
    assert plan == split(ReadChoice(kept, prefill, decode, tokens, 0))
    one_block_s = tokens / Fraction(max(prefill.read_tokens_per_s, decode.read_tokens_per_s))
    best = min(prefill_end_s(choice, k) for k in range(blocks + 1))
    assert prefill_end_s(choice, cut) <= (best + one_block_s) * CLOSE


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 40), loads(P, st.just(0.0) | known_rates), loads(D), st.floats(0, 1e4), known_rates)
def test_load_or_recompute_is_split_without_all_rates(
    blocks: int, prefill: NodeLoad, decode: NodeLoad, wait_s: float, rate: float
) -> None:
    unknown = 0.0 if prefill.read_tokens_per_s else rate
    hit = BlockRange(0, blocks)
    choice = ReadChoice(hit, prefill, decode, 64, 0, compute_wait_s=wait_s, compute_tokens_per_s=unknown)
    assert load_or_recompute(choice) == READ_POLICIES["split"](choice)


def test_load_or_recompute_by_hand() -> None:
    def blocks_read(queue: int, compute: float, wait_s: float = 0.0) -> int:
        nodes = [NodeLoad(n, queue, 1.0) for n in (P, D)]
        choice = ReadChoice(BlockRange(0, 10), *nodes, 1, 0, compute_wait_s=wait_s, compute_tokens_per_s=compute)
        return load_or_recompute(choice).stop

    assert blocks_read(queue=0, compute=0.5) == 10  # two nodes read 4 times as fast as the engine computes
    assert blocks_read(queue=0, compute=8.0) == 0  # an idle engine that is faster than both
    assert blocks_read(queue=0, compute=8.0, wait_s=3.0) == 6  # what is read while the engine is busy anyway is free
    assert blocks_read(queue=1000, compute=0.5) == 0  # storage far behind
    assert blocks_read(queue=1000, compute=0.5, wait_s=1002.0) == 10
