"""Batches under the compute quota: a linear-scan oracle, conservation, and the fit of the attention model."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dualpath.core.ids import RequestId
from dualpath.policy.batch import AttentionTime, PrefillChunk, PrefillWork, fill_batch, fit_attention_time

BLOCK = 4
WINDOW = 100
MAX_TOKENS = 60
quotas = st.integers(0, 60) | st.integers(0, 4000)
costs = st.integers(0, 5).map(float)
models = st.builds(AttentionTime, costs, costs, costs)


@st.composite
def queues(draw: st.DrawFn) -> list[PrefillWork]:
    """Cached parts end at a block bound, or anywhere: a whole prompt may be cached but for its last token."""
    works = []
    for i in range(draw(st.integers(0, 5))):
        total = draw(st.integers(1, MAX_TOKENS))
        cached = draw(st.integers(0, total - 1))
        cached -= cached % BLOCK if draw(st.booleans()) else 0
        works.append(PrefillWork(RequestId(f"r{i}"), cached, total - cached))
    return works


def blocks(tokens: int) -> int:
    return len(range(0, tokens, BLOCK))


def batch_by_the_text(
    queue: list[PrefillWork], model: AttentionTime, quota_ns: int, window: int
) -> list[tuple[str, int]]:
    """Tries every legal size of every request from the largest down."""
    batch: list[tuple[str, int]] = []
    spent, used = 0.0, 0
    for work in queue:
        ends = (work.cached_tokens + new for new in range(1, work.remaining_tokens + 1))
        legal = [end for end in ends if end % BLOCK == 0 or end == work.total_tokens]
        sizes = [end - work.cached_tokens for end in legal]
        good = [
            new
            for new in sizes
            if spent + model.predict_ns(work.cached_tokens, new) <= quota_ns
            and (used + blocks(work.cached_tokens + new)) * BLOCK <= window
        ]
        new = max(good, default=0) or (0 if batch else sizes[0])
        if new:
            batch.append((work.request, new))
        if new < work.remaining_tokens:
            break
        spent += model.predict_ns(work.cached_tokens, new)
        used += blocks(work.total_tokens)
    return batch


@settings(max_examples=400, deadline=None)
@given(queues(), models, quotas, st.integers(MAX_TOKENS, 2 * WINDOW))
def test_batch_is_the_largest_that_fits(
    queue: list[PrefillWork], model: AttentionTime, quota_ns: int, window: int
) -> None:
    chunks = fill_batch(queue, model, quota_ns, block_tokens=BLOCK, window_tokens=window)
    assert [(c.request, c.new_tokens) for c in chunks] == batch_by_the_text(queue, model, quota_ns, window)


@settings(max_examples=300, deadline=None)
@given(queues(), models, quotas, st.integers(MAX_TOKENS, 2 * WINDOW))
def test_limits_hold_but_for_the_first_block(
    queue: list[PrefillWork], model: AttentionTime, quota_ns: int, window: int
) -> None:
    chunks = fill_batch(queue, model, quota_ns, block_tokens=BLOCK, window_tokens=window)
    assert sum(blocks(c.cached_tokens + c.new_tokens) for c in chunks) * BLOCK <= window
    predicted = sum(model.predict_ns(c.cached_tokens, c.new_tokens) for c in chunks)
    if predicted > quota_ns:
        assert len(chunks) == 1
        assert chunks[0].new_tokens <= BLOCK
    for chunk, work in zip(chunks, queue, strict=False):
        assert chunk.last == (chunk.new_tokens == work.remaining_tokens)
        assert chunk.last or (chunk.cached_tokens + chunk.new_tokens) % BLOCK == 0


@settings(max_examples=100, deadline=None)
@given(queues(), models, quotas)
def test_all_tokens_are_computed_once(queue: list[PrefillWork], model: AttentionTime, quota_ns: int) -> None:
    done: dict[str, list[PrefillChunk]] = {work.request: [] for work in queue}
    left = list(queue)
    for _ in range(sum(blocks(work.total_tokens) for work in queue)):
        for chunk in fill_batch(left, model, quota_ns, block_tokens=BLOCK, window_tokens=WINDOW):
            done[chunk.request].append(chunk)
        left = [rest for work in queue if (rest := remainder(work, done[work.request])) is not None]
    assert left == []
    for work in queue:
        assert sum(chunk.new_tokens for chunk in done[work.request]) == work.remaining_tokens
        assert [chunk.last for chunk in done[work.request]].count(True) == 1


def remainder(work: PrefillWork, chunks: list[PrefillChunk]) -> PrefillWork | None:
    computed = sum(chunk.new_tokens for chunk in chunks)
    if computed == work.remaining_tokens:
        return None
    return PrefillWork(work.request, work.cached_tokens + computed, work.remaining_tokens - computed)


sizes = st.tuples(st.integers(0, 100_000), st.integers(1, 4096))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 50), st.lists(sizes, min_size=8, max_size=20))
def test_fit_recovers_known_coefficients(
    chunk_ns: int, token_ns: int, pair_ns: int, chunks: list[tuple[int, int]]
) -> None:
    assume(len(set(chunks)) >= 4 and len({new for _, new in chunks}) >= 3)
    truth = AttentionTime(chunk_ns, token_ns, 2 * pair_ns)  # even: times are whole ns
    fit = fit_attention_time([(cached, new, int(truth.predict_ns(cached, new))) for cached, new in chunks])
    for cached, new in chunks:
        assert fit.predict_ns(cached, new) == pytest.approx(truth.predict_ns(cached, new), rel=1e-9, abs=1e-6)
    if determined(chunks):
        assert fit == truth


def determined(chunks: list[tuple[int, int]]) -> bool:
    """Whether some three chunks fix the three coefficients: a nonzero 3x3 determinant."""
    rows = [(1, new, new * (2 * cached + new)) for cached, new in chunks]
    (a, *_), others = rows, rows[1:]
    edges = [(row[1] - a[1], row[2] - a[2]) for row in others]
    return any(x * v != u * y for x, y in edges for u, v in edges)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(0, 3000)), min_size=1, max_size=8),
    st.tuples(st.floats(0, 500), st.floats(0, 50), st.floats(0, 5)),
)
def test_no_model_without_negative_costs_fits_better(
    samples: list[tuple[int, int, int]], other: tuple[float, float, float]
) -> None:
    fit = fit_attention_time(samples)
    assert min(fit.chunk_ns, fit.token_ns, fit.pair_ns) >= 0
    for rival in (AttentionTime(*other), nudged(fit, 1.01), nudged(fit, 0.99)):
        assert squares(fit, samples) <= squares(rival, samples) * (1 + 1e-9) + 1e-6


def nudged(model: AttentionTime, factor: float) -> AttentionTime:
    return AttentionTime(model.chunk_ns * factor, model.token_ns * factor, model.pair_ns * factor)


def squares(model: AttentionTime, samples: list[tuple[int, int, int]]) -> float:
    return sum((model.predict_ns(cached, new) - ns) ** 2 for cached, new, ns in samples)
