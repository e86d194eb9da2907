"""Choice of the prefill engine against the paper's text, restated as a ranking."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.ids import EngineId
from dualpath.policy.loads import EngineLoad, Limits
from dualpath.policy.prefill import PREFILL_POLICIES, choose_prefill

small = st.integers(0, 6)  # small numbers: ties and values at the thresholds are common
limits = st.builds(Limits, alpha_tokens=small, beta_tokens=small)


@st.composite
def engine_loads(draw: st.DrawFn) -> list[EngineLoad]:
    rows = draw(st.lists(st.tuples(small, small, small), max_size=6))
    return [EngineLoad(EngineId(f"p{i}/0"), *row) for i, row in enumerate(rows)]


def ranked(loads: list[EngineLoad], limits: Limits) -> list[tuple[int, int, int, int]]:
    """(class, tok_e, seq_e, position), best first; class 0: short queue, 1: long, 2: overloaded."""
    rows = []
    for position, load in enumerate(loads):
        queue_class = 0 if load.read_queue_tokens <= limits.alpha_tokens else 1
        if load.tokens > limits.beta_tokens:
            queue_class = 2
        rows.append((queue_class, load.tokens, load.requests, position))
    return sorted(rows)


@settings(max_examples=300, deadline=None)
@given(engine_loads(), limits)
def test_least_tokens_short_queue_is_the_best_ranked(loads: list[EngineLoad], limits: Limits) -> None:
    ranking = ranked(loads, limits)
    expected = loads[ranking[0][3]].engine if ranking and ranking[0][0] < 2 else None
    assert choose_prefill(loads, limits) == expected
    assert PREFILL_POLICIES["least-tokens-short-queue"](loads, limits, 7) == expected


@settings(max_examples=50, deadline=None)
@given(engine_loads(), limits, st.integers(0, 20))
def test_round_robin_serves_each_engine_once_a_round(loads: list[EngineLoad], limits: Limits, turn: int) -> None:
    round_robin = PREFILL_POLICIES["round-robin"]
    if not loads:
        assert round_robin(loads, limits, turn) is None
        return
    chosen = [round_robin(loads, limits, turn + i) for i in range(len(loads))]
    assert sorted(map(str, chosen)) == sorted(load.engine for load in loads)
