"""From 48 to 1,152 GPUs (paper section 6, scale)."""

from msgspec.structs import replace

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.figures.loads import STEADY, online
from dualpath.bench.reproduce.measures import over, value
from dualpath.bench.reproduce.outcome import Results
from dualpath.bench.reproduce.plot import Curve, Plot, points
from dualpath.bench.reproduce.size import first_turns
from dualpath.bench.reproduce.systems import DUALPATH, READING_NAMES, READINGS, V32, Reading, scenario
from dualpath.sim.scenario import Scenario

_LATENCIES = ("ttft_s", "ttst_s", "tpot_s")
_SIZE = "2K agents are 2,048 and 48K are 49,152."


def _offline_points(quick: bool) -> list[tuple[str, int, float | None]]:
    return [("2P4D", 2048, 3167.0), ("4P8D", 4096, None) if quick else ("48P96D", 49_152, 3201.0)]


def _online_points(quick: bool) -> list[tuple[str, float, dict[str, float]]]:
    small = ("2P4D", 0.4, {"ttft_s": 1.739, "tpot_s": 0.039})
    large = ("44P88D", 8.8, {"ttft_s": 1.847, "ttst_s": 0.194, "tpot_s": 0.036})
    return [small, ("4P8D", 0.8, {}) if quick else large]


def _offline(topology: str, agents: int, reading: Reading, quick: bool) -> Scenario:
    return scenario(DUALPATH, replace(V32, topology=topology), f"paper-64k{reading}", agents, **first_turns(quick))


def _online(topology: str, aps: float, reading: Reading, quick: bool) -> Scenario:
    return online(DUALPATH, replace(V32, topology=topology), reading, aps, quick)


def _readings(quick: bool) -> tuple[Reading, ...]:
    return READINGS[:1] if quick else READINGS


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    needed = []
    for reading in _readings(quick):
        needed += [_offline(topology, agents, reading, quick) for topology, agents, _ in _offline_points(quick)]
        needed += [_online(topology, aps, reading, quick) for topology, aps, _ in _online_points(quick)]
    return needed


def _numbers(quick: bool) -> list[Number]:
    numbers = []
    for reading in _readings(quick):
        name = READING_NAMES[reading]
        for topology, agents, paper in _offline_points(quick):
            run = _offline(topology, agents, reading, quick)
            numbers.append(Number(
                f"offline {topology}, {agents:,} agents, {name}: JCT (s)", paper,
                value(run, "jct_s"), _SIZE,
            ))  # fmt: skip
        numbers += _growth(reading, quick) + _latencies(reading, quick)
    return numbers


def _growth(reading: Reading, quick: bool) -> list[Number]:
    (small, few, _), (large, many, _) = _offline_points(quick)
    (less, low, _), (more, high, _) = _online_points(quick)
    name = READING_NAMES[reading]
    jcts = over("jct_s", _offline(large, many, reading, quick), _offline(small, few, reading, quick))
    rates = over("requests_per_s", _online(more, high, reading, quick), _online(less, low, reading, quick))
    return [
        Number(f"offline, {name}: JCT of {large} over {small}'s", None if quick else 3201 / 3167, jcts, _SIZE),
        Number(f"online, {name}: requests a second of {more} over {less}'s (x)", None if quick else 22.0, rates,
               "Answered requests over the whole run, its filling and draining included; latencies are below."),
    ]  # fmt: skip


def _latencies(reading: Reading, quick: bool) -> list[Number]:
    return [
        Number(
            f"online {topology}, {aps:g} agents/s, {READING_NAMES[reading]}: {name[:4].upper()} (s)", paper.get(name),
            value(_online(topology, aps, reading, quick), name),
            STEADY,
        )
        for topology, aps, paper in _online_points(quick)
        for name in _LATENCIES
    ]  # fmt: skip


def _plots(results: Results, quick: bool) -> list[Plot]:
    def jct(reading: Reading) -> Curve:
        found = _offline_points(quick)
        marks = points(range(2), lambda i: results[_offline(*found[int(i)][:2], reading, quick)].jct_s)
        return Curve(READING_NAMES[reading], marks, "dualpath" if reading == "" else "sixth")

    paper = [(float(i), jct_s) for i, (_, _, jct_s) in enumerate(_offline_points(quick)) if jct_s]
    return [Plot(
        title="Offline: as many agents a node", x_label="prefill and decode nodes", y_label="JCT (s)",
        categories=tuple(topology for topology, _, _ in _offline_points(quick)),
        curves=[*(jct(reading) for reading in _readings(quick)), Curve("paper", paper, "dualpath", paper=True)],
    )]  # fmt: skip


SCALE = Figure(
    name="scale", title="Large scale",
    setting="660B, MaxLen 64K, DualPath: as many agents, or arrivals, for each node on a small and a large cluster.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
