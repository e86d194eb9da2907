"""Read plans: every plan covers its hit, and each policy does what it says, by enumeration."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.ids import NodeId
from dualpath.core.plan import BlockRange
from dualpath.policy.loads import NodeLoad, ReadChoice
from dualpath.policy.read import READ_POLICIES

P, D = NodeId("p0"), NodeId("d0")
hits = st.builds(lambda start, n: BlockRange(start, start + n), st.integers(0, 5), st.integers(0, 40))
rates = st.sampled_from([0.0, 0.25, 1.0, 3.0, 7.5, 1e6]) | st.floats(1e-3, 1e9)
queue_tokens = st.integers(0, 5) | st.integers(0, 10**6)
block_sizes = st.sampled_from([1, 16, 64])


def loads(node: NodeId) -> st.SearchStrategy[NodeLoad]:
    return st.builds(NodeLoad, st.just(node), queue_tokens, rates)


def makespan(blocks: int, tokens: int, prefill: NodeLoad, decode: NodeLoad, k: int) -> Fraction:
    """When the last block is read if the prefill node reads k of them, in exact arithmetic."""
    rate_p, rate_d = Fraction(prefill.read_tokens_per_s), Fraction(decode.read_tokens_per_s)
    if not (rate_p and rate_d):
        rate_p = rate_d = Fraction(1)
    ends = []
    if k > 0:
        ends.append((prefill.read_queue_tokens + k * tokens) / rate_p)
    if k < blocks:
        ends.append((decode.read_queue_tokens + (blocks - k) * tokens) / rate_d)
    return max(ends, default=Fraction(0))


@pytest.mark.parametrize("name", sorted(READ_POLICIES))
@settings(max_examples=100, deadline=None)
@given(hit=hits, prefill=loads(P), decode=loads(D), tokens=block_sizes, turn=st.integers(0, 9))
def test_plans_cover_the_hit_front_by_prefill(
    name: str, hit: BlockRange, prefill: NodeLoad, decode: NodeLoad, tokens: int, turn: int
) -> None:
    plan = READ_POLICIES[name](ReadChoice(hit, prefill, decode, tokens, turn))
    assert plan.covers(hit)
    readers = [segment.reader for segment in plan.segments]
    assert readers in ([], [P], [D], [P, D])
    assert plan.blocks_by(P) + plan.blocks_by(D) == len(hit)


@pytest.mark.parametrize("name", sorted(READ_POLICIES))
@settings(max_examples=30, deadline=None)
@given(hit=hits, load=loads(P), other_queue=queue_tokens, turn=st.integers(0, 3))
def test_one_node_in_both_roles_reads_in_one_segment(
    name: str, hit: BlockRange, load: NodeLoad, other_queue: int, turn: int
) -> None:
    plan = READ_POLICIES[name](ReadChoice(hit, load, NodeLoad(P, other_queue, load.read_tokens_per_s), 64, turn))
    assert plan.covers(hit)
    assert len(plan.segments) == (1 if len(hit) else 0)


@settings(max_examples=400, deadline=None)
@given(hits, loads(P), loads(D), block_sizes)
def test_split_minimises_the_makespan(hit: BlockRange, prefill: NodeLoad, decode: NodeLoad, tokens: int) -> None:
    plan = READ_POLICIES["split"](ReadChoice(hit, prefill, decode, tokens, 0))
    spans = [makespan(len(hit), tokens, prefill, decode, k) for k in range(len(hit) + 1)]
    assert spans[plan.blocks_by(P)] <= min(spans) * (1 + Fraction(1, 10**12))


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 12), st.sampled_from([0.0, 1.0, 2.0]))
def test_split_breaks_ties_by_segments_then_prefill(n: int, queue_p: int, queue_d: int, rate: float) -> None:
    prefill, decode = NodeLoad(P, queue_p, rate), NodeLoad(D, queue_d, rate)
    plan = READ_POLICIES["split"](ReadChoice(BlockRange(0, n), prefill, decode, 1, 0))
    best = min(
        range(n + 1),
        key=lambda k: (makespan(n, 1, prefill, decode, k), (k > 0) + (k < n), n - k),
    )
    assert plan.blocks_by(P) == best


@settings(max_examples=200, deadline=None)
@given(hits, loads(P), loads(D), st.integers(0, 9))
def test_whole_hit_policies(hit: BlockRange, prefill: NodeLoad, decode: NodeLoad, turn: int) -> None:
    shares = {
        name: policy(ReadChoice(hit, prefill, decode, 64, turn)).blocks_by(P) for name, policy in READ_POLICIES.items()
    }
    assert shares["prefill-only"] == len(hit)
    assert shares["round-robin"] == (len(hit), 0)[turn % 2]
    prefill_is_shorter = prefill.read_queue_tokens <= decode.read_queue_tokens
    assert shares["shorter-queue"] == (len(hit) if prefill_is_shorter else 0)
