"""Outcomes from a formula, where the simulator would take too long."""

import os
import signal
import time
from collections.abc import Callable

from dualpath.bench.reproduce.figure import Figure
from dualpath.bench.reproduce.outcome import Balance, Outcome, Results
from dualpath.core.config import parse_topology
from dualpath.core.errors import ConfigError
from dualpath.sim.scenario import Scenario

_SPEED = {"prefill-only": 1.0, "round-robin": 1.8, "shorter-queue": 2.0, "split": 2.2, "any-node": 2.3}


def fake_outcome(scenario: Scenario) -> Outcome:
    """Plausible: work over nodes, the better the policy the faster; latencies explode at a capacity."""
    prefill, decode = parse_topology(scenario.topology)
    both = scenario.read_policy != "prefill-only"
    speed = (
        (prefill + (decode if both else 0)) * _SPEED.get(scenario.read_policy, 2.1) / 6 * (4 if scenario.oracle else 1)
    )
    jct_s = scenario.agents * (scenario.turns or 157) * scenario.append_factor / speed / 40
    load = (scenario.aps or 0.0) * (scenario.turns or 157) / 157 / speed
    even = Balance(5.0, [(5.0, 1.2), (10.0, 1.1)], 1.15, 1.1, 1.05)
    return Outcome(
        jct_s=jct_s, agent_jct_mean_s=500.0 * (1 + load), turns=scenario.agents * (scenario.turns or 157),
        requests_per_s=100.0, ttft_s=1.0 / max(1e-3, 1 - load), ttst_s=0.05, tpot_s=0.03, ttft_p99_s=3.0, hit_rate=0.98,
        snic_utilisation=0.9, snic=even, attention=even, wall_s=1.0,
    )  # fmt: skip


def complete(figure: Figure, quick: bool, outcome: Callable[[Scenario], Outcome] = fake_outcome) -> Results:
    """Answer until the figure asks nothing new."""
    outcomes: dict[Scenario, Outcome] = {}
    results = Results(outcomes)
    for _ in range(100):
        new = [s for s in figure.scenarios(results, quick) if s not in results]
        if not new:
            return results
        outcomes.update((s, outcome(s)) for s in new)
    raise AssertionError(f"{figure.name} does not stop asking")


def quick_work(scenario: Scenario, on_turn: Callable[[int], None]) -> Outcome:
    """In a process: answers at once; other seeds misbehave."""
    on_turn(scenario.agents)
    if scenario.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if scenario.seed == 2:
        time.sleep(60)
    if scenario.seed == 3:
        raise ConfigError("not a good seed")
    return fake_outcome(scenario)
