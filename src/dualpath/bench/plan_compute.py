"""What the engines of a cluster can compute, from the times of their batches."""

import math

from dualpath.bench.plan_work import Work
from dualpath.sim.physics import StepTimes

QUOTA_NS = 300e6  # predicted attention time of a prefill batch (paper section 5)
MOST_REQUESTS = 64  # in a prefill batch; more gain little


def prefill_per_s(times: StepTimes, engines: int, work: Work, window_tokens: int, agents: int | None) -> float:
    """Requests a second that all prefill engines compute, in the largest batches that window and quota allow.

    0 if a prompt does not fit the window.
    """
    if window_tokens < work.context_tokens:
        return 0.0
    attention_ns = _attention_ns(times, work)
    batch = min(window_tokens / work.context_tokens, QUOTA_NS / max(attention_ns, 1.0), MOST_REQUESTS)
    if agents is not None:
        batch = min(batch, max(1.0, agents / engines))
    group = min(times.prefill_group_engines, engines)
    new = max(1, round(batch * work.new_tokens))
    step_ns = times.prefill_step_ns([batch * attention_ns] * group, [new] * group)
    return engines * (new / work.new_tokens) * 1e9 / step_ns


def prefill_s(times: StepTimes, work: Work) -> float:
    """One request's prefill while its engine has nothing else to do."""
    return times.prefill_step_ns([_attention_ns(times, work)], [max(1, round(work.new_tokens))]) / 1e9


def decode_per_s(times: StepTimes, engines: int, work: Work, agents: int | None) -> float:
    """Requests a second that all decode engines generate with full batches; inf if prefill does all."""
    steps = work.gen_tokens - 1
    batch = _largest_batch(times, engines, work, agents)
    if not batch:
        return 0.0
    return engines * batch / (steps * _step_s(times, engines, work, batch)) if steps > 0 else math.inf


def decode_step_s(times: StepTimes, engines: int, work: Work, requests_per_s: float, agents: int | None) -> float:
    """A decode step (TPOT) at that rate: the smallest batch that keeps up."""
    low, high = 1, max(1, _largest_batch(times, engines, work, agents))
    while low < high:
        batch = (low + high) // 2
        if engines * batch >= requests_per_s * (work.gen_tokens - 1) * _step_s(times, engines, work, batch):
            high = batch
        else:
            low = batch + 1
    return _step_s(times, engines, work, low)


def _attention_ns(times: StepTimes, work: Work) -> float:
    return times.attention.predict_ns(round(work.hit_tokens), max(1, round(work.new_tokens)))


def _largest_batch(times: StepTimes, engines: int, work: Work, agents: int | None) -> int:
    """Requests of one engine: as many as its memory holds, at most its share of the agents."""
    fit = int(times.decode_kv_tokens() / (work.context_tokens + work.gen_tokens))
    return fit if agents is None else min(fit, math.ceil(agents / engines))


def _step_s(times: StepTimes, engines: int, work: Work, batch: int) -> float:
    group = min(times.decode_group_engines, engines)
    context = round(batch * (work.context_tokens + work.gen_tokens / 2))
    return times.decode_step_ns([batch] * group, [context] * group) / 1e9
