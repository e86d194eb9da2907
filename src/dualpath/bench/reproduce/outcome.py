"""What is kept of a simulation for the figures."""

from collections.abc import Mapping

import msgspec

from dualpath.sim.scenario import Scenario


class Balance(msgspec.Struct, frozen=True):
    """How evenly members share something over time: the most that one did / the mean, 1 = perfectly even.

    `weighted`: sum of the maxima / sum of the means over all intervals, so that idle ones do not count; `early` the
    same over the first 5% of the job, `lowest` the smallest ratio of all. Empty intervals are left out of `points`.
    """

    interval_s: float
    points: list[tuple[float, float]]  # (seconds, max / mean)
    weighted: float | None
    early: float | None
    lowest: float | None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What figures use of a simulation. Latencies are means; of an online run, of requests sent in its steady part.

    `error`: it failed, and why.
    """

    jct_s: float = 0.0
    agent_jct_mean_s: float | None = None
    turns: int = 0
    requests_per_s: float = 0.0
    ttft_s: float | None = None
    ttst_s: float | None = None
    tpot_s: float | None = None
    ttft_p99_s: float | None = None
    hit_rate: float | None = None
    snic_utilisation: float | None = None
    snic: Balance | None = None
    attention: Balance | None = None
    wall_s: float = 0.0
    error: str = ""


class Missing(Exception):
    """A number cannot be given: its simulation failed, or has no such figure. The text says why."""


class Results:
    """Outcomes by scenario; a look-up gives a good one or raises Missing."""

    def __init__(self, outcomes: Mapping[Scenario, Outcome]) -> None:
        self._outcomes = outcomes

    def __contains__(self, scenario: Scenario) -> bool:
        return scenario in self._outcomes

    def __getitem__(self, scenario: Scenario) -> Outcome:
        outcome = self._outcomes.get(scenario)
        if outcome is None:
            raise Missing("not simulated")
        if outcome.error:
            raise Missing(outcome.error)
        return outcome


def known(value: float | None, what: str) -> float:
    """The value; Missing when the simulation has none."""
    if value is None:
        raise Missing(f"the simulation gives no {what}")
    return value
