"""How evenly nodes read and engines attend (paper section 6, load balance)."""

from msgspec.structs import replace

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.measures import Measure
from dualpath.bench.reproduce.outcome import Balance, Missing, Outcome, Results, known
from dualpath.bench.reproduce.plot import Bound, Curve, Plot
from dualpath.bench.reproduce.size import agents_of, first_turns
from dualpath.bench.reproduce.systems import (
    DUALPATH,
    READING_NAMES,
    READINGS,
    SMALL,
    TWO_PATHS,
    Reading,
    System,
    scenario,
)
from dualpath.sim.scenario import Scenario

AGENTS = 1024
_TOPOLOGIES = ("1P1D", "1P2D")
_CELLS = [(topology, reading) for topology in _TOPOLOGIES for reading in READINGS]
_SYSTEMS = (TWO_PATHS, DUALPATH)
_SHOWN = {TWO_PATHS.name: "round robin", DUALPATH.name: "scheduling"}
_PAPER_SNIC = {TWO_PATHS.name: 1.53, DUALPATH.name: 1.18}
_TURNS = (
    "The paper names no topology. Strict turns between the sides of a pair are even on 1P1D; on 1P2D the prefill node "
    "reads as much as both decode nodes, 1.5 times the mean."
)
_INTERVALS = "Over intervals of 5 s; the paper does not give its interval, and shorter ones show higher ratios."


def _run(system: System, topology: str, reading: Reading, quick: bool) -> Scenario:
    setting = replace(SMALL, topology=topology)
    return scenario(system, setting, f"paper-48k{reading}", agents_of(AGENTS, quick), **first_turns(quick))


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    return [_run(system, *cell, quick) for cell in _CELLS for system in _SYSTEMS]


def _of(outcome: Outcome, part: str) -> Balance:
    found = getattr(outcome, part)
    if found is None:
        raise Missing("the run is too short for a series")
    return found


def _value(scenario: Scenario, part: str, name: str) -> Measure:
    return lambda results: known(getattr(_of(results[scenario], part), name), "balance: nothing happened in that time")


def _numbers(quick: bool) -> list[Number]:
    numbers = []
    for topology, reading in _CELLS:
        for system in _SYSTEMS:
            run = _run(system, topology, reading, quick)
            tail = f"{_SHOWN[system.name]}, {topology}, {READING_NAMES[reading]}"
            facts = (
                ("snic", "weighted", f"storage NICs, max / mean traffic: {tail}", _PAPER_SNIC[system.name],
                 f"Sum of maxima over sum of means. {_TURNS} {_INTERVALS}"),
                ("attention", "early", f"attention time in the first 5% of the job, max / mean: {tail}",
                 1.06 if system is DUALPATH else None,
                 f"Prefill engines. The paper says as low as 1.06; ours is the mean of that time. {_INTERVALS}"),
                ("attention", "weighted", f"attention time in the whole job, max / mean: {tail}", None, _INTERVALS),
            )  # fmt: skip
            numbers += [Number(name, paper, _value(run, part, field), why) for part, field, name, paper, why in facts]
    return numbers


def _plots(results: Results, quick: bool) -> list[Plot]:
    kinds = (("snic", "Storage NICs"), ("attention", "Attention time"))
    return [_plot(results, *cell, part, name, quick) for cell in _CELLS for part, name in kinds]


def _plot(results: Results, topology: str, reading: Reading, part: str, name: str, quick: bool) -> Plot:
    def curve(system: System) -> Curve:
        try:
            found = _of(results[_run(system, topology, reading, quick)], part).points
        except Missing:
            found = []
        return Curve(_SHOWN[system.name], found, system.colour, marked=False)

    paper = _PAPER_SNIC if part == "snic" else {}
    bounds = tuple(Bound(f"paper: {_SHOWN[system]}", ratio) for system, ratio in paper.items())
    return Plot(
        title=f"{name}, {topology}, {READING_NAMES[reading]}", x_label="time (s)",
        y_label="max / mean", y_from=1.0, bounds=bounds, curves=[curve(system) for system in _SYSTEMS],
    )  # fmt: skip


BALANCE = Figure(
    name="balance", title="Balance of storage NICs and of attention",
    setting="27B, MaxLen 48K, 1024 agents, offline; both paths, before and after scheduling.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
