"""The ratio of prefill to decode nodes (paper section 6, P/D ratio)."""

from statistics import mean

from msgspec.structs import replace

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.measures import of_gains, over
from dualpath.bench.reproduce.outcome import Results
from dualpath.bench.reproduce.plot import Curve, Plot, points
from dualpath.bench.reproduce.size import agents_of, first_turns
from dualpath.bench.reproduce.systems import BASIC, DUALPATH, READING_NAMES, READINGS, SMALL, Reading, System, scenario
from dualpath.sim.scenario import Scenario

TOPOLOGIES = ("1P1D", "1P2D", "2P1D")
AGENTS = 1024
_SYSTEMS = (BASIC, DUALPATH)
_AGENTS_UNKNOWN = f"The number of agents is not given; {AGENTS} here."


def _run(system: System, topology: str, reading: Reading, quick: bool) -> Scenario:
    setting = replace(SMALL, topology=topology)
    return scenario(system, setting, f"paper-64k{reading}", agents_of(AGENTS, quick), **first_turns(quick))


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    return [_run(system, topology, reading, quick)
            for reading in READINGS for topology in TOPOLOGIES for system in _SYSTEMS]  # fmt: skip


def _equal(left: tuple[System, str], right: tuple[System, str], reading: Reading, quick: bool) -> Number:
    names = " / ".join(f"{system.name} {topology}" for system, topology in (left, right))
    ratio = over("jct_s", _run(*left, reading, quick), _run(*right, reading, quick))
    why = f"The paper calls the two equal; 1 stands for that. {_AGENTS_UNKNOWN}"
    return Number(f"JCT of {names}, {READING_NAMES[reading]}", 1.0, ratio, why)


def _numbers(quick: bool) -> list[Number]:
    numbers = []
    for reading in READINGS:
        pairs = [(_run(BASIC, t, reading, quick), _run(DUALPATH, t, reading, quick)) for t in TOPOLOGIES]
        numbers += [
            _equal((BASIC, "1P2D"), (BASIC, "1P1D"), reading, quick),
            _equal((BASIC, "2P1D"), (DUALPATH, "1P1D"), reading, quick),
            _equal((DUALPATH, "1P2D"), (DUALPATH, "2P1D"), reading, quick),
            Number(f"mean gain over Basic, {READING_NAMES[reading]} (x)", 1.64,
                   of_gains(mean, pairs),
                   f"Mean over the three topologies. {_AGENTS_UNKNOWN}"),
            Number(f"highest gain over Basic, {READING_NAMES[reading]} (x)", 2.46,
                   of_gains(max, pairs), _AGENTS_UNKNOWN),
        ]  # fmt: skip
    return numbers


def _plots(results: Results, quick: bool) -> list[Plot]:
    def curve(system: System, reading: Reading) -> Curve:
        def jct_s(index: float) -> float:
            return results[_run(system, TOPOLOGIES[int(index)], reading, quick)].jct_s

        return Curve(system.name, points(range(len(TOPOLOGIES)), jct_s), system.colour)

    return [
        Plot(
            title=f"27B, 64K, {agents_of(AGENTS, quick)} agents, {READING_NAMES[reading]}",
            x_label="prefill and decode nodes", y_label="JCT (s)", categories=TOPOLOGIES,
            curves=[curve(system, reading) for system in _SYSTEMS],
        )
        for reading in READINGS
    ]  # fmt: skip


PD = Figure(
    name="pd", title="Ratio of prefill to decode nodes",
    setting="27B, MaxLen 64K, offline. A node brings its storage NIC: with both paths it counts wherever it stands.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
