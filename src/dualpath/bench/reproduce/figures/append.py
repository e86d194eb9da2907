"""Longer appends and longer generations (paper section 6)."""

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.measures import gain, of_gains
from dualpath.bench.reproduce.outcome import Results
from dualpath.bench.reproduce.plot import Curve, Plot, points
from dualpath.bench.reproduce.size import agents_of, first_turns, readings
from dualpath.bench.reproduce.systems import (
    BASIC,
    COMPARED,
    DUALPATH,
    READING_NAMES,
    V32,
    Reading,
    System,
    scenario,
)  # fmt: skip
from dualpath.sim.scenario import Scenario

AGENTS = 1024
SCALED = ("append", "gen")
_NAMES = {"append": "append", "gen": "generation"}


def _factors(scaled: str, reading: Reading, quick: bool) -> tuple[float, ...]:
    return (1.0, 3.0) if quick or reading or scaled == "gen" else (1.0, 2.0, 3.0)


def _run(system: System, scaled: str, factor: float, reading: Reading, quick: bool) -> Scenario:
    more = first_turns(quick) | {f"{scaled}_factor": factor}
    return scenario(system, V32, f"paper-64k{reading}", agents_of(AGENTS, quick), **more)


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    return [
        _run(system, scaled, factor, reading, quick)
        for scaled in SCALED
        for reading in readings(quick)
        for factor in _factors(scaled, reading, quick)
        for system in COMPARED
    ]


def _numbers(quick: bool) -> list[Number]:
    numbers: list[Number] = []
    for reading in readings(quick):
        name = READING_NAMES[reading]
        pairs = [
            (_run(BASIC, "append", factor, reading, quick), _run(DUALPATH, "append", factor, reading, quick))
            for factor in _factors("append", reading, quick)
        ]
        why = "Over all factors of the append; which factor has which gain is not given."
        numbers += [
            Number(f"lowest gain over Basic, append x1..x3, {name} (x)", 1.82,
                   of_gains(min, pairs), why),
            Number(f"highest gain over Basic, append x1..x3, {name} (x)", 1.99,
                   of_gains(max, pairs), why),
        ]  # fmt: skip
    return numbers + [
        _point(scaled, factor, reading, quick)
        for scaled in SCALED
        for reading in readings(quick)
        for factor in _factors(scaled, reading, quick)
    ]


def _point(scaled: str, factor: float, reading: Reading, quick: bool) -> Number:
    basic, ours = (_run(system, scaled, factor, reading, quick) for system in (BASIC, DUALPATH))
    return Number(
        f"{_NAMES[scaled]} x{factor:g}, {READING_NAMES[reading]}: gain over Basic (x)", None,
        gain(basic, ours), "A point of the plot.",
    )  # fmt: skip


def _plots(results: Results, quick: bool) -> list[Plot]:
    def curve(system: System, scaled: str, reading: Reading) -> Curve:
        def jct_s(factor: float) -> float:
            return results[_run(system, scaled, factor, reading, quick)].jct_s

        return Curve(system.name, points(_factors(scaled, reading, quick), jct_s), system.colour)

    return [
        Plot(
            title=f"660B 2P4D, {agents_of(AGENTS, quick)} agents, {READING_NAMES[reading]}",
            x_label=f"factor of the {_NAMES[scaled]} lengths", y_label="JCT (s)",
            curves=[curve(system, scaled, reading) for system in COMPARED],
        )
        for scaled in SCALED
        for reading in readings(quick)
    ]  # fmt: skip


APPEND = Figure(
    name="append", title="Longer appends, longer generations",
    setting="660B on 2P4D, MaxLen 64K, 1024 agents, offline; the lengths of all later appends, or of all "
    "generations, are multiplied.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
