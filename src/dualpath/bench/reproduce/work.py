"""Runs one scenario, in a process of its own, and keeps what figures need."""

import math
import time
from collections.abc import Callable

import numpy as np

from dualpath.bench.reproduce.outcome import Balance, Outcome
from dualpath.bench.simulate import Simulated, simulate
from dualpath.core.errors import DualPathError
from dualpath.sim.scenario import Scenario
from dualpath.sim.series import Series

INTERVAL_S = 5.0  # over which the balance is taken; longer where the series is coarser
EARLY = 0.05  # of the job
MOST_POINTS = 400  # of a kept series


def run(scenario: Scenario, on_turn: Callable[[int], None]) -> Outcome:
    """Simulate and keep the outcome; an error is kept too, the table names it."""
    began_s = time.perf_counter()
    try:
        return outcome_of(simulate(scenario, on_turn), time.perf_counter() - began_s)
    except DualPathError as error:
        return Outcome(error=str(error))


def outcome_of(simulated: Simulated, wall_s: float) -> Outcome:
    """What is kept. Requests that failed make it an error: such a run does not count."""
    run, series = simulated.run, simulated.series
    if run.errors:
        return Outcome(error=f"{run.errors} requests failed: {run.error_messages[0]}")
    if simulated.unfinished:
        return Outcome(error=f"{simulated.unfinished} requests never ended")
    return Outcome(
        jct_s=run.jct_s, agent_jct_mean_s=run.agent_jct_mean_s, turns=run.turns,
        requests_per_s=run.requests_per_s or 0.0, ttft_s=simulated.ttft.mean_s, ttst_s=simulated.ttst.mean_s,
        tpot_s=simulated.tpot.mean_s, ttft_p99_s=simulated.ttft.p99_s, hit_rate=run.hit_rate,
        snic_utilisation=run.snic_utilisation, snic=balance(series, series.read_bytes, run.jct_s),
        attention=balance(series, series.attention_ns, run.jct_s), wall_s=wall_s,
    )  # fmt: skip


def balance(series: Series, sums: dict[str, list[float]], jct_s: float) -> Balance | None:
    """How evenly the members of `sums` (totals since the start) share, by intervals; None before two samples."""
    time_s = np.asarray([0.0, *series.time_s])
    if len(time_s) < 3 or not sums:
        return None
    interval_s = max(INTERVAL_S if jct_s > 20 * INTERVAL_S else jct_s / 20, float(time_s[-1] - time_s[-2]))
    edges_s = np.arange(0.0, min(jct_s, time_s[-1]) + interval_s / 2, interval_s)
    spent = np.array([np.diff(np.interp(edges_s, time_s, [0.0, *values])) for values in sums.values()])
    most, mean = spent.max(axis=0), spent.mean(axis=0)
    early = edges_s[1:] <= max(EARLY * jct_s, interval_s)
    busy = mean > 0
    ratios = most[busy] / mean[busy]
    every = math.ceil(len(ratios) / MOST_POINTS)
    points = list(zip(edges_s[1:][busy].tolist(), ratios.tolist(), strict=True))[:: every or 1]
    return Balance(
        interval_s=interval_s, points=points, weighted=_weighted(most, mean),
        early=_weighted(most[early], mean[early]), lowest=float(ratios.min()) if len(ratios) else None,
    )  # fmt: skip


def _weighted(most: np.ndarray, mean: np.ndarray) -> float | None:
    return float(most.sum() / mean.sum()) if mean.sum() > 0 else None
