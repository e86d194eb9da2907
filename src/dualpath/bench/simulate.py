"""A simulated run with the figures of a replay, and those that only a simulation knows."""

import os
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from dualpath import __version__
from dualpath.bench.counters import NodeSpent, Spent
from dualpath.bench.results import BytesRead, Run, percentiles, ratio, snic_max_over_avg, snic_utilisation
from dualpath.core.report import Role
from dualpath.core.units import NS_PER_S
from dualpath.sim.perfetto import Recorder
from dualpath.sim.physics import Physics
from dualpath.sim.run import Outcome, run_scenario
from dualpath.sim.scenario import Scenario, system_of
from dualpath.sim.series import Series
from dualpath.workload.lengths import SessionLengths

STEADY = (0.75, 1.0)  # of the time in which agents arrive: the system has filled, and an overload had time to show


class Latency(msgspec.Struct, frozen=True):
    """Seconds; None where no request has it."""

    mean_s: float | None
    p50_s: float | None
    p99_s: float | None


class Simulated(msgspec.Struct, kw_only=True):
    """One scenario's figures. `ttft`, `ttst`, `tpot`: of requests sent in an online run's steady part, or of all."""

    run: Run
    scenario: Scenario
    ttft: Latency
    ttst: Latency
    tpot: Latency
    series: Series
    decode_batch: float | None  # mean requests a decode step of a group
    unfinished: int  # requests that were cut off
    trace_hash: str
    simulated_requests_per_s: float  # a second of CPU time
    actions: int


class Simulation(msgspec.Struct, kw_only=True):
    """A replay's JSON for simulated runs: `runs` and `speedup` have its keys."""

    runs: list[Run]
    speedup: dict[str, float]
    simulated: list[Simulated]
    version: str
    cores: int


def simulate(
    scenario: Scenario,
    on_turn: Callable[[int], None] | None = None,
    until_s: float | None = None,
    *,
    physics: Physics | None = None,
    sessions: Sequence[SessionLengths] | None = None,
    recorder: Recorder | None = None,
) -> Simulated:
    """Run one scenario; ConfigError when it cannot be run."""
    began_s = time.process_time()
    outcome = run_scenario(
        scenario,
        physics=physics,
        on_turn=on_turn or (lambda turns: None),
        until_s=until_s,
        sessions=sessions,
        recorder=recorder,
    )
    return _figures(scenario, outcome, time.process_time() - began_s)


def simulation(simulated: list[Simulated]) -> Simulation:
    """All runs in one, gains over the first."""
    runs = [one.run for one in simulated]
    first = runs[0].jct_s
    return Simulation(
        runs=runs, speedup={run.policy: ratio(first, run.jct_s) or 0.0 for run in runs}, simulated=simulated,
        version=__version__, cores=len(os.sched_getaffinity(0)),
    )  # fmt: skip


def _figures(scenario: Scenario, outcome: Outcome, took_s: float) -> Simulated:
    ttft, ttst, tpot = (
        _latency(values) for values in (_steady(scenario, outcome, name) for name in ("ttft_s", "ttst_s", "tpot_s"))
    )
    return Simulated(
        run=_run(scenario, outcome), scenario=scenario, ttft=ttft, ttst=ttst, tpot=tpot, series=outcome.series,
        decode_batch=ratio(outcome.decode_step_requests, outcome.decode_steps), unfinished=outcome.unfinished,
        trace_hash=outcome.trace_hash, simulated_requests_per_s=len(outcome.records) / took_s,
        actions=outcome.actions,
    )  # fmt: skip


def _run(scenario: Scenario, outcome: Outcome) -> Run:
    records = outcome.records
    spent = Spent(
        [NodeSpent(n.node, n.role, n.read_bytes, 0, n.read_busy_ns, 0) for n in outcome.nodes],
        outcome.any_read_ns, outcome.decisions, outcome.recomputes,
    )  # fmt: skip
    prompt = np.asarray(records.prompt_tokens)
    cached = np.asarray(records.cached_tokens)
    ttft, ttst, tpot = (percentiles(_known(getattr(records, name))) for name in ("ttft_s", "ttst_s", "tpot_s"))
    jct_s = outcome.jct_s
    return Run(
        policy=system_of(scenario), pair=0, topology=scenario.topology, jct_s=jct_s,
        agent_jct_mean_s=float(np.mean(outcome.agent_s)) if outcome.agent_s else None,
        turns=len(records), requests_per_s=ratio(len(records), jct_s),
        ttft_p50_s=ttft[0], ttft_p99_s=ttft[1], ttst_p50_s=ttst[0], ttst_p99_s=ttst[1],
        tpot_p50_s=tpot[0], tpot_p99_s=tpot[1], hit_rate=ratio(int(cached.sum()), int(prompt.sum())),
        hit_rate_blocks=ratio(
            int((cached // scenario.block_tokens).sum()), int((prompt // scenario.block_tokens).sum())
        ),
        snic_utilisation=None if scenario.oracle else snic_utilisation(spent, round(outcome.snic_bytes_per_s)),
        snic_max_over_avg=snic_max_over_avg(spent, prefill_only=scenario.read_policy == "prefill-only"),
        cnic_peak=ratio(max(n.cnic_peak_bytes for n in outcome.nodes), outcome.cnic_bytes_per_s * jct_s),
        snic_busy={n.node: ratio(n.read_busy_ns, jct_s * NS_PER_S) or 0.0 for n in outcome.nodes},
        bytes_read=BytesRead(spent.read_bytes(Role.PREFILL), spent.read_bytes(Role.DECODE)), bytes_retained=0,
        wire_bytes=None, writes_skipped=0, restarted=[], decisions=outcome.decisions, recomputes=outcome.recomputes,
        cpu_s={}, tokens_sha256="", divergences=[], errors=len(records.errors), error_messages=records.errors[:5],
    )  # fmt: skip


def _steady(scenario: Scenario, outcome: Outcome, name: str) -> np.ndarray:
    values = np.asarray(getattr(outcome.records, name))
    if scenario.aps is not None and len(values):
        sent_s = np.asarray(outcome.records.sent_s)
        low, high = (share * scenario.agents / scenario.aps for share in STEADY)
        values = values[(sent_s >= low) & (sent_s < high)]
    return values[values >= 0]


def _known(values: object) -> list[float]:
    array = np.asarray(values)
    return array[array >= 0].tolist()


def _latency(values: np.ndarray) -> Latency:
    if not len(values):
        return Latency(None, None, None)
    p50, p99 = np.percentile(values, [50, 99])
    return Latency(float(np.mean(values)), float(p50), float(p99))
