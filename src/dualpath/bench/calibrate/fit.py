"""From the timelines of one live run to a profile that the simulator can run on."""

import math
from collections.abc import Sequence
from statistics import quantiles

import numpy as np

from dualpath.bench.agents import TurnRecord
from dualpath.bench.replay import Measured
from dualpath.core.config import Config
from dualpath.core.errors import ServiceError
from dualpath.core.model import ModelSpec
from dualpath.policy.batch import fit_attention_time
from dualpath.sim.engine_time import MeasuredTime
from dualpath.sim.profile import Profile

LEAST_TURNS = 8


def fit_profile(config: Config, spec: ModelSpec, measured: Measured) -> Profile:
    """The cluster that gave `measured`; ServiceError when the run says too little."""
    turns = [turn for turn in measured.replayed.turns if turn.timeline.finished_ns >= 0 and len(turn.tokens) > 2]
    if len(turns) < LEAST_TURNS:
        raise ServiceError(f"only {len(turns)} turns to calibrate from; give at least {LEAST_TURNS}")
    base_ns, request_ns = _decode_step(turns)
    times = MeasuredTime(
        attention=fit_attention_time([(t.cached_tokens, _new(t), _computed_ns(t)) for t in turns]),
        prefill_base_ns=0.0, prefill_token_ns=0.0,  # both are in `attention` already
        decode_base_ns=base_ns, decode_request_ns=request_ns, decode_context_ns=0.0,
        layers=spec.layout.n_layers, window_tokens=config.scheduling.window_tokens,
        kv_tokens=config.scheduling.kv_tokens,
    )  # fmt: skip
    rate = config.snic_bytes_per_s
    return Profile(
        times=times, kv_bytes_per_token=spec.layout.kv_bytes_per_token, block_tokens=spec.layout.block_tokens,
        engines=config.cluster.engines_per_node, snic_bytes_per_s=rate or math.inf,
        snic_efficiency=_efficiency(measured, rate), cnic_bytes_per_s=config.cnic_bytes_per_s or math.inf,
        buffer_bytes=config.arena_bytes, write_share=config.storage.write_share,
        read_concurrency=config.storage.read_concurrency, submit_ns=_loop_ns(turns),
        load_ns=_unhindered(t.timeline.prefill_started_ns - _loaded_ns(t) for t in turns),
        handoff_ns=_unhindered(t.timeline.decode_started_ns - t.timeline.prefill_finished_ns for t in turns),
    )  # fmt: skip


def _new(turn: TurnRecord) -> int:
    return turn.prompt_tokens - turn.cached_tokens


def _computed_ns(turn: TurnRecord) -> int:
    """Its prefill without the wait for layers, which the simulator finds for itself from the NICs' rates."""
    timeline = turn.timeline
    return timeline.prefill_finished_ns - timeline.prefill_started_ns - timeline.layer_wait_ns


def _loaded_ns(turn: TurnRecord) -> int:
    return max(turn.timeline.prefill_side_loaded_ns, turn.timeline.decode_side_loaded_ns)


def _unhindered(spans_ns: object) -> int:
    """The lower quartile: what it takes where nothing else is in the way."""
    return max(0, round(quantiles(list(spans_ns), n=4)[0]))  # type: ignore[call-overload]


def _efficiency(measured: Measured, rate: int | None) -> float:
    """Blocks' bytes of the nodes that read / (rate * the time in which they had reads)."""
    nodes = [node for node in measured.cost.spent.nodes if node.read_bytes]
    busy_s = sum(node.read_busy_ns for node in nodes) / 1e9
    return sum(node.read_bytes for node in nodes) / (rate * busy_s) if rate and busy_s else 1.0


def _loop_ns(turns: Sequence[TurnRecord]) -> int:
    """What an agent's loop takes besides the scheduler's own span of a request: client, gateway, messages."""
    ends = {(turn.agent, turn.turn): turn.ended_s for turn in turns}
    loops = [
        (turn.ended_s - ends[turn.agent, turn.turn - 1]) * 1e9 - turn.timeline.finished_ns
        for turn in turns
        if (turn.agent, turn.turn - 1) in ends
    ]
    return max(0, round(float(np.median(loops)))) if loops else 0


def _decode_step(turns: Sequence[TurnRecord]) -> tuple[float, float]:
    """A step's time and each further request's: least squares over the batches that requests were in."""
    spans = [_decode_span(turn) for turn in turns]
    batch = np.array([_company(at, spans, turns) for at in range(len(turns))])
    step_ns = np.array([(end - begin) / (len(t.tokens) - 1) for (begin, end), t in zip(spans, turns, strict=True)])
    if np.ptp(batch) > 0.5:
        slope, base = np.polyfit(batch, step_ns, 1)
        if slope >= 0 and base >= 0:
            return float(base), float(slope)
    return 0.0, float(np.mean(step_ns) / np.mean(batch)) if np.mean(batch) > 1.5 else float(np.mean(step_ns))


def _decode_span(turn: TurnRecord) -> tuple[float, float]:
    """Begin and end, in nanoseconds since the start of the clock."""
    begin_ns = turn.ended_s * 1e9 - turn.timeline.finished_ns
    return begin_ns + turn.timeline.decode_started_ns, begin_ns + turn.timeline.finished_ns


def _company(at: int, spans: Sequence[tuple[float, float]], turns: Sequence[TurnRecord]) -> float:
    """Mean number of requests, itself included, that decoded beside this one on its engine."""
    begin, end = spans[at]
    shared = sum(
        max(0.0, min(end, spans[i][1]) - max(begin, spans[i][0]))
        for i, turn in enumerate(turns)
        if turn.timeline.decode_engine == turns[at].timeline.decode_engine
    )
    return shared / (end - begin)
