"""Online serving: latency against the agents' arrival rate, and the capacity at the service level (paper section 6)."""

from statistics import mean

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.figures.loads import STEADY, online
from dualpath.bench.reproduce.measures import Measure, over
from dualpath.bench.reproduce.outcome import Missing, Outcome, Results, known
from dualpath.bench.reproduce.plot import Bound, Curve, Plot, points
from dualpath.bench.reproduce.search import Found, highest_load
from dualpath.bench.reproduce.size import readings
from dualpath.bench.reproduce.systems import (
    BASIC,
    DUALPATH,
    READING_NAMES,
    SMALL,
    V32,
    Reading,
    Setting,
    System,
)  # fmt: skip
from dualpath.sim.scenario import Scenario

TTFT_S = 4.0
TPOT_S = 0.05
_HOURS = 2.0  # an overload by a twentieth lifts the mean TTFT to the bound only in the second one
SETTINGS = (SMALL, V32)
_SYSTEMS = (BASIC, DUALPATH)
_START = {V32.name: 0.3, SMALL.name: 0.3}  # agents a second, where the search begins
_QUICK_START = 1.0  # first turns are served sooner
_PAPER_APS = {(V32.name, BASIC.name): 0.20, (V32.name, DUALPATH.name): 0.45}
_PAPER_GAIN = {SMALL.name: 1.67, V32.name: 2.25}
_PAPER_POINT = {"ttft_s": (0.4, 1.739), "tpot_s": (0.4, 0.039)}  # 660B, DualPath (section 6, scale)
_LEVEL = (
    f"Service level: mean TTFT <= {TTFT_S:g} s and mean TPOT <= {TPOT_S * 1e3:g} ms while agents arrive for "
    f"{_HOURS:g} hours. {STEADY}"
)


def _good(outcome: Outcome) -> bool:
    return known(outcome.ttft_s, "TTFT") <= TTFT_S and known(outcome.tpot_s, "TPOT") <= TPOT_S


def _at(system: System, setting: Setting, reading: Reading, aps: float, quick: bool) -> Scenario:
    return online(system, setting, reading, aps, quick, hours=_HOURS)


def _search(results: Results, system: System, setting: Setting, reading: Reading, quick: bool) -> Found:
    return highest_load(
        results, lambda aps: _at(system, setting, reading, aps, quick), _good,
        _QUICK_START if quick else _START[setting.name], 0.5 if quick else 0.06,
    )  # fmt: skip


def _capacity(system: System, setting: Setting, reading: Reading, quick: bool) -> Measure:
    return lambda results: known(_search(results, system, setting, reading, quick).highest, "end of the search")


def _cells(quick: bool) -> list[tuple[System, Setting, Reading]]:
    return [(system, setting, reading) for setting in SETTINGS for reading in readings(quick) for system in _SYSTEMS]


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    needed: list[Scenario] = []
    for system, setting, reading in _cells(quick):
        try:
            needed += _search(results, system, setting, reading, quick).asked.values()
        except Missing:
            continue  # the table says so
        if system is DUALPATH:
            needed += _at_basics_capacity(results, setting, reading, quick)
    return needed


def _at_basics_capacity(results: Results, setting: Setting, reading: Reading, quick: bool) -> list[Scenario]:
    try:
        aps = _search(results, BASIC, setting, reading, quick).highest
    except Missing:
        return []
    return [] if aps is None else [_at(DUALPATH, setting, reading, aps, quick)]


def _numbers(quick: bool) -> list[Number]:
    numbers = []
    for reading in readings(quick):
        for setting in SETTINGS:
            numbers += _capacities(setting, reading, quick) + _latencies(setting, reading, quick)
        numbers.append(Number(
            f"mean capacity gain, {READING_NAMES[reading]} (x)", 1.96,
            _mean_gain(reading, quick),
            "Mean of the two models.",
        ))  # fmt: skip
    return numbers


def _gain(setting: Setting, reading: Reading, quick: bool) -> Measure:
    ours, basic = (_capacity(system, setting, reading, quick) for system in (DUALPATH, BASIC))
    return lambda results: ours(results) / basic(results)


def _mean_gain(reading: Reading, quick: bool) -> Measure:
    return lambda results: mean(_gain(setting, reading, quick)(results) for setting in SETTINGS)


def _capacities(setting: Setting, reading: Reading, quick: bool) -> list[Number]:
    start = f"{setting.name}, {READING_NAMES[reading]}:"
    each = [
        Number(f"{start} capacity of {system.name} (agents/s)", _PAPER_APS.get((setting.name, system.name)),
               _capacity(system, setting, reading, quick), _LEVEL)
        for system in _SYSTEMS
    ]  # fmt: skip
    gain = Number(f"{start} capacity gain over Basic (x)", _PAPER_GAIN[setting.name],
                  _gain(setting, reading, quick), _LEVEL)  # fmt: skip
    return [*each, gain]


def _latencies(setting: Setting, reading: Reading, quick: bool) -> list[Number]:
    def ratio(name: str) -> Measure:
        def measure(results: Results) -> float:
            aps = _capacity(BASIC, setting, reading, quick)(results)
            ours, basic = (_at(system, setting, reading, aps, quick) for system in (DUALPATH, BASIC))
            return over(name, ours, basic)(results)

        return measure

    return [
        Number(f"{setting.name}, {READING_NAMES[reading]}: {name[:4].upper()} over Basic's", 1.0, ratio(name),
               f"The paper says: as Basic; 1 stands for that. Both at Basic's capacity. {STEADY}")
        for name in ("ttst_s", "tpot_s")
    ]  # fmt: skip


def _plots(results: Results, quick: bool) -> list[Plot]:
    kinds = (("ttft_s", "TTFT (s)", (Bound("service level", TTFT_S),)), ("ttst_s", "TTST (s)", ()),
             ("tpot_s", "TPOT (s)", (Bound("service level", TPOT_S),)))  # fmt: skip
    return [
        Plot(
            title=f"{setting.name} {setting.topology}, {READING_NAMES[reading]}", x_label="agents a second",
            y_label=label, bounds=bounds, y_most=2.5 * bounds[0].y if bounds else None,
            curves=[_curve(results, system, setting, reading, quick, name) for system in _SYSTEMS]
            + _paper(setting, name),
        )
        for setting in SETTINGS
        for reading in readings(quick)
        for name, label, bounds in kinds
    ]  # fmt: skip


def _curve(
    results: Results, system: System, setting: Setting, reading: Reading, quick: bool, name: str
) -> Curve:  # fmt: skip
    try:
        asked = _search(results, system, setting, reading, quick).asked
    except Missing:
        asked = {}

    def value(aps: float) -> float:
        return known(getattr(results[asked[aps]], name), name)

    return Curve(system.name, points(sorted(asked), value), system.colour)


def _paper(setting: Setting, name: str) -> list[Curve]:
    if setting is not V32 or name not in _PAPER_POINT:
        return []
    return [Curve(DUALPATH.name, [_PAPER_POINT[name]], DUALPATH.colour, paper=True)]


ONLINE = Figure(
    name="online", title="Online serving: latency and capacity",
    setting="Poisson arrivals of agents, MaxLen 64K, no waits between turns; the capacity is found by bisection, each "
    "point is a run. Points above the plots' upper ends are left out there, not in the search.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
