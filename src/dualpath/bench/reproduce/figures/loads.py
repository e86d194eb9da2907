"""Online runs: agents arrive as a Poisson process (paper section 6)."""

from dualpath.bench.reproduce.size import arrivals, first_turns
from dualpath.bench.reproduce.systems import Reading, Setting, System, scenario
from dualpath.sim.scenario import Scenario

STEADY = "Mean over requests sent in the last quarter of the time in which agents arrive."


def online(
    system: System, setting: Setting, reading: Reading, aps: float, quick: bool, *, hours: float = 1.0
) -> Scenario:  # fmt: skip
    """Agents at `aps` a second, in the full set's terms; the quick set has minutes for hours."""
    size = arrivals(quick)
    rate = float(f"{aps * size.factor:.4g}")
    agents = max(1, round(rate * size.hour_s * hours))
    return scenario(system, setting, f"paper-64k{reading}", agents, aps=rate, **first_turns(quick))
