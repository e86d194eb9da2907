"""From 48 to 1,152 GPUs (paper section 6, scale)."""

from msgspec.structs import replace

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.figures.loads import STEADY, online
from dualpath.bench.reproduce.measures import over, value
from dualpath.bench.reproduce.outcome import Results
from dualpath.bench.reproduce.plot import Curve, Plot, points
from dualpath.bench.reproduce.size import QUICK_AGENTS, first_turns, readings
from dualpath.bench.reproduce.systems import DUALPATH, READING_NAMES, READINGS, V32, Reading, scenario
from dualpath.sim.scenario import Scenario

_SMALL = V32.topology
_LATENCIES = ("ttft_s", "ttst_s", "tpot_s")
_SIZE = "2K agents are 2,048 and 48K are 49,152."


def _offline_points(quick: bool) -> list[tuple[str, int, float | None]]:
    if quick:
        return [(_SMALL, QUICK_AGENTS, 3167.0), ("4P8D", 2 * QUICK_AGENTS, None)]
    return [(_SMALL, 2048, 3167.0), ("48P96D", 49_152, 3201.0)]


def _online_points(quick: bool) -> list[tuple[str, float, dict[str, float]]]:
    small = (_SMALL, 0.4, {"ttft_s": 1.739, "tpot_s": 0.039})
    large = ("44P88D", 8.8, {"ttft_s": 1.847, "ttst_s": 0.194, "tpot_s": 0.036})
    return [small, ("4P8D", 0.8, {}) if quick else large]


def _offline(topology: str, agents: int, reading: Reading, quick: bool) -> Scenario:
    return scenario(DUALPATH, replace(V32, topology=topology), f"paper-64k{reading}", agents, **first_turns(quick))


def _online(topology: str, aps: float, reading: Reading, quick: bool) -> Scenario:
    return online(DUALPATH, replace(V32, topology=topology), reading, aps, quick)


def _readings(topology: str, quick: bool) -> tuple[Reading, ...]:
    """The large cluster takes an hour for each: it is shown for the first one."""
    return readings(quick) if topology == _SMALL else READINGS[:1]


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    offline = [
        _offline(topology, agents, reading, quick)
        for topology, agents, _ in _offline_points(quick)
        for reading in _readings(topology, quick)
    ]
    return offline + [
        _online(topology, aps, reading, quick)
        for topology, aps, _ in _online_points(quick)
        for reading in _readings(topology, quick)
    ]


def _numbers(quick: bool) -> list[Number]:
    jcts = [
        Number(f"offline {topology}, {agents:,} agents, {READING_NAMES[reading]}: JCT (s)", paper,
               value(_offline(topology, agents, reading, quick), "jct_s"), _SIZE)
        for topology, agents, paper in _offline_points(quick)
        for reading in _readings(topology, quick)
    ]  # fmt: skip
    return jcts + _growth(READINGS[0], quick) + _latencies(quick)


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


def _latencies(quick: bool) -> list[Number]:
    return [
        Number(
            f"online {topology}, {aps:g} agents/s, {READING_NAMES[reading]}: {name[:4].upper()} (s)", paper.get(name),
            value(_online(topology, aps, reading, quick), name),
            STEADY,
        )
        for topology, aps, paper in _online_points(quick)
        for reading in _readings(topology, quick)
        for name in _LATENCIES
    ]  # fmt: skip


def _plots(results: Results, quick: bool) -> list[Plot]:
    found = _offline_points(quick)
    runs = [_offline(topology, agents, READINGS[0], quick) for topology, agents, _ in found]
    ours = Curve(DUALPATH.name, points(range(len(found)), lambda i: results[runs[int(i)]].jct_s), DUALPATH.colour)
    paper = [(float(i), jct_s) for i, (_, _, jct_s) in enumerate(found) if jct_s]
    return [Plot(
        title=f"Offline: as many agents a node, {READING_NAMES[READINGS[0]]}", x_label="prefill and decode nodes",
        y_label="JCT (s)", categories=tuple(topology for topology, _, _ in found),
        curves=[ours, Curve(DUALPATH.name, paper, DUALPATH.colour, paper=True)],
    )]  # fmt: skip


SCALE = Figure(
    name="scale", title="Large scale",
    setting="660B, MaxLen 64K, DualPath: as many agents, or arrivals, for each node on a small and a large cluster.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
