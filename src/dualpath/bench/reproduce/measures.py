"""What figures compute from simulations, as functions of the results."""

from collections.abc import Callable, Sequence
from statistics import mean

from dualpath.bench.reproduce.outcome import Missing, Results, known
from dualpath.sim.scenario import Scenario

Measure = Callable[[Results], float]
Pair = tuple[Scenario, Scenario]  # (slow, fast)


def value(scenario: Scenario, name: str) -> Measure:
    """A field of its Outcome."""
    return lambda results: known(getattr(results[scenario], name), name)


def over(name: str, one: Scenario, other: Scenario) -> Measure:
    """The field of one over the other's."""
    above, below = value(one, name), value(other, name)
    return lambda results: above(results) / below(results)


def gain(slow: Scenario, fast: Scenario) -> Measure:
    """How many times as fast: JCT / JCT."""
    return over("jct_s", slow, fast)


def of_gains(choose: Callable[[Sequence[float]], float], pairs: Sequence[Pair]) -> Measure:
    """`choose` (min, max, mean) over the gains of all pairs that ran well; Missing, with a reason, when none did."""

    def measure(results: Results) -> float:
        found, reason = [], ""
        for slow, fast in pairs:
            try:
                found.append(gain(slow, fast)(results))
            except Missing as missing:
                reason = str(missing)
        if not found:
            raise Missing(reason)
        return choose(found)

    return measure


def change_percent(pairs: Sequence[Pair]) -> Measure:
    """By how much the JCT changes from the first to the second, mean over pairs."""
    return lambda results: mean((results[after].jct_s / results[before].jct_s - 1) * 100 for before, after in pairs)


def gap_closed_percent(paper: Scenario, new: Scenario, oracle: Scenario) -> Measure:
    """Share of the JCT between the paper's policy and Oracle that a policy saves; Missing when there is no gap."""

    def measure(results: Results) -> float:
        gap_s = results[paper].jct_s - results[oracle].jct_s
        saved_s = results[paper].jct_s - results[new].jct_s
        if gap_s <= 0.01 * results[oracle].jct_s:
            raise Missing("the paper's policy is within 1% of Oracle: there is no gap to close")
        return saved_s / gap_s * 100

    return measure
