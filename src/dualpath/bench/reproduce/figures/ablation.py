"""What each part brings (paper section 6, ablation)."""

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.measures import change_percent
from dualpath.bench.reproduce.outcome import Results
from dualpath.bench.reproduce.plot import Curve, Plot, points
from dualpath.bench.reproduce.size import agents_of, first_turns
from dualpath.bench.reproduce.systems import (
    BASIC,
    DUALPATH,
    LAYERWISE,
    READING_NAMES,
    READINGS,
    TWO_PATHS,
    V32,
    Reading,
    System,
    scenario,
)  # fmt: skip
from dualpath.sim.scenario import Scenario

AGENTS = (1024, 2048)
STEPS = (BASIC, LAYERWISE, TWO_PATHS, DUALPATH)
PAPER_PERCENT = {LAYERWISE.name: -17.21, TWO_PATHS.name: -38.19, DUALPATH.name: -45.62}
_WHY = {
    LAYERWISE.name: "Memory does not bind our Basic: reads for later requests go on while a batch is computed, and the "
    "storage NICs are always busy. The paper's Basic seems to leave them idle meanwhile; why, it does not say.",
    TWO_PATHS.name: "Prefill engines and the reading side in turn, whole hits. Decode engines bind then, not NICs.",
    DUALPATH.name: "With strict turns over many like agents little is left uneven that scheduling could gain.",
}
_SHOWN = {DUALPATH.name: "+ scheduling (DualPath)"}


def _run(system: System, agents: int, reading: Reading, quick: bool) -> Scenario:
    return scenario(system, V32, f"paper-64k{reading}", agents, **first_turns(quick))


def _agents(reading: Reading, quick: bool) -> tuple[int, ...]:
    return (agents_of(AGENTS[0], quick),) if quick or reading else AGENTS


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    return [_run(system, agents, reading, quick)
            for reading in READINGS for agents in _agents(reading, quick) for system in STEPS]  # fmt: skip


def _numbers(quick: bool) -> list[Number]:
    return [number for reading in READINGS for step in STEPS[1:] for number in _step(step, reading, quick)]


def _step(step: System, reading: Reading, quick: bool) -> list[Number]:
    name = f"{_SHOWN.get(step.name, step.name)}, {READING_NAMES[reading]}"

    pairs = {
        agents: (_run(BASIC, agents, reading, quick), _run(step, agents, reading, quick))
        for agents in _agents(reading, quick)
    }
    both = Number(
        f"{name}: JCT against Basic (%)", PAPER_PERCENT[step.name],
        change_percent(list(pairs.values())),
        f"{_WHY[step.name]} The paper names one number for 1024 and 2048 agents; ours is the mean of those simulated.",
    )  # fmt: skip
    each = [
        Number(f"{name}, {agents} agents: JCT against Basic (%)", None,
               change_percent([pair]), "A part of the mean.")
        for agents, pair in pairs.items()
    ]  # fmt: skip
    return [both, *each]


def _plots(results: Results, quick: bool) -> list[Plot]:
    def curve(system: System, reading: Reading) -> Curve:
        def jct_s(index: float) -> float:
            return results[_run(system, _agents(reading, quick)[int(index)], reading, quick)].jct_s

        return Curve(
            _SHOWN.get(system.name, system.name), points(range(len(_agents(reading, quick))), jct_s), system.colour
        )

    def paper(system: System, reading: Reading) -> Curve:
        def jct_s(index: float) -> float:
            basic = results[_run(BASIC, _agents(reading, quick)[int(index)], reading, quick)].jct_s
            return basic * (1 + PAPER_PERCENT.get(system.name, 0.0) / 100)

        marks = points(range(len(_agents(reading, quick))), jct_s)
        return Curve(_SHOWN.get(system.name, system.name), marks, system.colour, paper=True)

    return [
        Plot(
            title=f"660B 2P4D, 64K, {READING_NAMES[reading]}", x_label="agents", y_label="JCT (s)",
            categories=tuple(str(agents) for agents in _agents(reading, quick)),
            curves=[kind(system, reading) for kind in (curve, paper) for system in STEPS],
        )
        for reading in READINGS
    ]  # fmt: skip


ABLATION = Figure(
    name="ablation", title="Ablation",
    setting="660B on 2P4D, MaxLen 64K, offline. The paper's marks are its percentages of our Basic.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
