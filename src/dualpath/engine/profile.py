"""A short profile at start: attention's time for the compute quota (paper section 5), and prefill's rate."""

import time
from collections import Counter
from collections.abc import Sequence

import torch

from dualpath.engine.attention import attend_one
from dualpath.engine.model import PackedModel
from dualpath.engine.probe import PlainKv

POINTS = ((0, 64), (0, 256), (0, 512), (1024, 64), (1024, 256), (4096, 64), (4096, 256))
REPEATS = 3
BUDGET_NS = 1_000_000_000


def profile_attention(
    model: PackedModel, points: Sequence[tuple[int, int]] = POINTS, budget_ns: int = BUDGET_NS
) -> list[tuple[int, int, int]]:
    """(cached tokens, new tokens, ns over all layers) at each point that fits the context, best of a few.

    Each point is measured at least once, the rest only while the budget lasts.
    """
    deadline_ns = time.perf_counter_ns() + budget_ns
    fitting = [point for point in points if sum(point) <= model.spec.max_context_tokens] or [(0, 1)]
    best: dict[tuple[int, int], int] = {}
    for _ in range(REPEATS):
        for cached, new in fitting:
            if (cached, new) in best and time.perf_counter_ns() > deadline_ns:
                continue
            took_ns = _attention_ns(model, cached, new)
            best[cached, new] = min(took_ns, best.get((cached, new), took_ns))
    return [(cached, new, took_ns) for (cached, new), took_ns in best.items()]


def _attention_ns(model: PackedModel, cached: int, new: int) -> int:
    """One layer of each kind, times the layers of that kind."""
    spec, total_ns = model.spec, 0
    dtype = getattr(torch, spec.layout.dtype)
    q = torch.randn(new, spec.n_heads, spec.head_dim, dtype=dtype, device=model.device)
    kv = torch.randn(cached + new, 2, spec.kv_heads, spec.head_dim, dtype=dtype, device=model.device)
    with torch.inference_mode():
        for layer, count in Counter(model.layers).items():
            start_ns = time.perf_counter_ns()
            attend_one(q, kv, scaling=layer.scaling, window=layer.window)
            total_ns += count * (time.perf_counter_ns() - start_ns)
    return total_ns


def measure_prefill_rate(model: PackedModel, chunk_tokens: int = 128) -> float:
    """New tokens a second that the model prefills in one chunk without cached tokens; better of two runs."""
    count = min(chunk_tokens, model.spec.max_context_tokens)
    tokens = [index % model.spec.vocab_size for index in range(count)]
    rates = []
    for _ in range(2):
        start_ns = time.perf_counter_ns()
        model.forward(tokens, range(count), PlainKv().attend([("profile", count)]), [count - 1])
        rates.append(count * 1e9 / (time.perf_counter_ns() - start_ns))
    return max(rates)
