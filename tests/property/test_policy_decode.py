"""Choice of the decode node and engine against the paper's text, restated with fractions and sorting."""

from fractions import Fraction
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.policy.decode import choose_decode, choose_group
from dualpath.policy.loads import EngineLoad, Pending

small = st.integers(0, 30)


@st.composite
def engine_loads(draw: st.DrawFn, node: str = "d0", min_size: int = 0) -> list[EngineLoad]:
    read_queue = draw(st.integers(0, 3))
    rows = draw(st.lists(st.tuples(st.integers(0, 3), small, small), min_size=min_size, max_size=4))
    return [
        EngineLoad(EngineId(f"{node}/{i}"), requests, tokens, read_queue, free)
        for i, (requests, tokens, free) in enumerate(rows)
    ]


@st.composite
def queues(draw: st.DrawFn) -> list[Pending]:
    return [Pending(RequestId(f"r{i}"), n) for i, n in enumerate(draw(st.lists(st.integers(1, 20), max_size=8)))]


def placements_by_the_text(group: list[EngineLoad], queue: list[Pending]) -> list[tuple[str, str]]:
    """R, Z and the walk over R as in the paper, on plain dictionaries."""
    memory = sum(e.free_kv_tokens for e in group)
    fitting = queue[: sum(total <= memory for total in accumulate(p.tokens for p in queue))]
    if not group:
        return []
    tok = {e.engine: e.tokens for e in group}
    seq = {e.engine: e.requests for e in group}
    free = {e.engine: e.free_kv_tokens for e in group}
    z = Fraction(105, 100) * (sum(p.tokens for p in fitting) + sum(tok.values())) / len(group)
    placed = []
    for p in fitting:
        low = [e for e in tok if free[e] >= p.tokens and tok[e] + p.tokens <= z]
        high = [e for e in tok if free[e] >= p.tokens and tok[e] + p.tokens > z]
        order = sorted(low, key=lambda e: (seq[e], tok[e])) + sorted(high, key=lambda e: (tok[e], seq[e]))
        if not order:
            break
        placed.append((p.request, order[0]))
        tok[order[0]] += p.tokens
        seq[order[0]] += 1
        free[order[0]] -= p.tokens
    return placed


@settings(max_examples=400, deadline=None)
@given(engine_loads(), queues())
def test_placements_are_the_paper_s(group: list[EngineLoad], queue: list[Pending]) -> None:
    placements = choose_decode(group, queue)
    assert [(p.request, p.engine) for p in placements] == placements_by_the_text(group, queue)


@settings(max_examples=200, deadline=None)
@given(engine_loads(), queues())
def test_placements_keep_the_order_and_the_memory(group: list[EngineLoad], queue: list[Pending]) -> None:
    placements = choose_decode(group, queue)
    assert [p.request for p in placements] == [p.request for p in queue[: len(placements)]]
    tokens = {p.request: p.tokens for p in queue}
    for engine in group:
        placed = sum(tokens[p.request] for p in placements if p.engine == engine.engine)
        assert placed <= engine.free_kv_tokens


@settings(max_examples=200, deadline=None)
@given(engine_loads(min_size=1), queues())
def test_nothing_waits_while_the_head_fits(group: list[EngineLoad], queue: list[Pending]) -> None:
    placements = choose_decode(group, queue)
    if queue and not placements:
        assert all(engine.free_kv_tokens < queue[0].tokens for engine in group)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_group_is_the_least_loaded(data: st.DataObject) -> None:
    nodes = [NodeId(f"d{i}") for i in range(data.draw(st.integers(1, 4)))]
    groups = {node: data.draw(engine_loads(node, min_size=1)) for node in nodes}
    queued = {node: data.draw(st.integers(0, 5)) for node in nodes if data.draw(st.booleans())}
    chosen = choose_group(groups, queued)
    ranking = sorted(
        (
            sum(e.tokens for e in groups[node]) + queued.get(node, 0),
            groups[node][0].read_queue_tokens,
            position,
        )
        for position, node in enumerate(nodes)
    )
    assert chosen == nodes[ranking[0][2]]
