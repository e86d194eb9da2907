"""The highest load that still meets a service level, by bisection over simulations that may not exist yet."""

import math
from collections.abc import Callable

import msgspec

from dualpath.bench.reproduce.outcome import Missing, Outcome, Results
from dualpath.sim.scenario import Scenario

_STEP = 1.5  # until both sides are known
_MOST_RUNS = 24


class Found(msgspec.Struct, frozen=True):
    """`asked`: all runs so far, the last perhaps unknown. `highest`: None while the search goes on."""

    asked: dict[float, Scenario]
    highest: float | None


def highest_load(
    results: Results, at: Callable[[float], Scenario], good: Callable[[Outcome], bool], start: float, precision: float
) -> Found:
    """The good one of two loads that are nearer than `precision` (a share). Missing when a run failed or none is."""
    asked: dict[float, Scenario] = {}
    low, high, load = 0.0, math.inf, start
    while high > low * (1 + precision):
        load = _rounded(load)
        asked[load] = at(load)
        if asked[load] not in results:
            return Found(asked, None)
        if len(asked) > _MOST_RUNS:
            raise Missing(f"no end of the search between {low:g} and {high:g}")
        if good(results[asked[load]]):
            low = load
        else:
            high = load
        load = low * _STEP if math.isinf(high) else high / _STEP if low == 0 else math.sqrt(low * high)
    return Found(asked, low)


def _rounded(load: float) -> float:
    """To 4 digits: loads are part of what names a run."""
    return float(f"{load:.4g}")
