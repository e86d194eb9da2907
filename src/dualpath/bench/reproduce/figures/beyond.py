"""What the paper leaves open: how much of its policy's distance to Oracle each closes (paper section 7)."""

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.measures import Measure, gap_closed_percent
from dualpath.bench.reproduce.outcome import Results
from dualpath.bench.reproduce.plot import Curve, Plot, points
from dualpath.bench.reproduce.size import agents_of, first_turns, readings
from dualpath.bench.reproduce.systems import (
    BASIC,
    DUALPATH,
    ORACLE,
    READING_NAMES,
    SETTINGS,
    V32,
    Reading,
    Setting,
    System,
    scenario,
)  # fmt: skip
from dualpath.sim.scenario import Scenario

AGENTS = 1024
FEWER_AGENTS = 512  # on the two and three nodes of the smaller models
RETAIN_BYTES = 500e9  # of each decode node
POLICIES = (
    System("split", "fourth", "split"),
    System("any-node", "fifth", "any-node"),
    System("retain, 500 GB a decode node", "sixth", "shorter-queue", {"retain_bytes": RETAIN_BYTES}),
    System("load-or-recompute", "seventh", "load-or-recompute"),
)
_WHY = "The paper has no such policy. 0: as long as the paper's policy; 100: as Oracle."


def _run(system: System, setting: Setting, reading: Reading, quick: bool) -> Scenario:
    agents = agents_of(AGENTS if setting is V32 else FEWER_AGENTS, quick)
    return scenario(system, setting, f"paper-64k{reading}", agents, **first_turns(quick))


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    systems = (BASIC, DUALPATH, ORACLE, *POLICIES)
    return [_run(system, setting, reading, quick)
            for setting in SETTINGS for reading in readings(quick) for system in systems]  # fmt: skip


def _closed(system: System, setting: Setting, reading: Reading, quick: bool) -> Measure:
    paper, new, oracle = (_run(s, setting, reading, quick) for s in (DUALPATH, system, ORACLE))
    return gap_closed_percent(paper, new, oracle)


def _numbers(quick: bool) -> list[Number]:
    return [
        Number(
            f"{setting.name} {setting.topology}, {READING_NAMES[reading]}: gap to Oracle closed by {system.name} (%)",
            None, _closed(system, setting, reading, quick), _WHY,
        )
        for setting in SETTINGS
        for reading in readings(quick)
        for system in POLICIES
    ]  # fmt: skip


def _plots(results: Results, quick: bool) -> list[Plot]:
    def curve(system: System, reading: Reading) -> Curve:
        def jct_s(index: float) -> float:
            setting = SETTINGS[int(index)]
            return (
                results[_run(system, setting, reading, quick)].jct_s
                / results[_run(BASIC, setting, reading, quick)].jct_s
            )

        return Curve(system.name, points(range(len(SETTINGS)), jct_s), system.colour)

    return [
        Plot(
            title=f"64K, {READING_NAMES[reading]}", x_label="model and nodes",
            y_label="JCT over Basic's",
            categories=tuple(f"{setting.name} {setting.topology}" for setting in SETTINGS),
            curves=[curve(system, reading) for system in (DUALPATH, *POLICIES, ORACLE)],
        )
        for reading in readings(quick)
    ]  # fmt: skip


BEYOND = Figure(
    name="beyond", title="Beyond the paper",
    setting="The three settings at MaxLen 64K, offline, with 1024 agents on 660B and 512 on the others: policies that "
    "the paper names as open.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
