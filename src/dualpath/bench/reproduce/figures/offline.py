"""Offline inference: all agents start together; time until the last is done (paper section 6)."""

from collections.abc import Iterator

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.measures import Pair, gain, of_gains
from dualpath.bench.reproduce.outcome import Results
from dualpath.bench.reproduce.plot import Curve, Plot, points
from dualpath.bench.reproduce.size import first_turns
from dualpath.bench.reproduce.systems import (
    BASIC,
    COMPARED,
    DUALPATH,
    ORACLE,
    QWEN,
    READING_NAMES,
    READINGS,
    SETTINGS,
    SMALL,
    V32,
    Reading,
    Setting,
    System,
    scenario,
)  # fmt: skip
from dualpath.sim.scenario import Scenario

_UP_TO = (
    "The paper names the highest gain of its plot only; ours is the highest over all agents and sets simulated here."
)
_PAPER_GAIN = {V32.name: 1.87, SMALL.name: 1.78, QWEN.name: 1.78}
_SIMILAR = (
    " The paper says of Qwen: similar to 27B; 27B's number stands here. On 1P2D three storage NICs read where Basic "
    "has one, and Qwen has 11 times the KV a token of 27B: storage binds ours almost up to that factor."
)


def _max_lens(quick: bool) -> tuple[int, ...]:
    return (64,) if quick else (32, 48, 64)


def _readings(max_len: int) -> tuple[Reading, ...]:
    """The second one only of the set that all other figures use too."""
    return READINGS if max_len == 64 else READINGS[:1]


def _agents(setting: Setting, max_len: int, reading: Reading, quick: bool) -> tuple[int, ...]:
    """On the two and three nodes of the smaller models half as many; a whole curve of the main set only."""
    if quick:
        return (128, 512)
    most = 2048 if setting is V32 else 1024
    return (most // 8, most // 2, most) if max_len == 64 and not reading else (most // 2,)


def _run(system: System, setting: Setting, max_len: int, reading: Reading, agents: int, quick: bool) -> Scenario:
    return scenario(system, setting, f"paper-{max_len}k{reading}", agents, **first_turns(quick))


def _cells(quick: bool, setting: Setting | None = None) -> Iterator[tuple[Setting, int, Reading, int]]:
    for place in (setting,) if setting else SETTINGS:
        for max_len in _max_lens(quick):
            for reading in _readings(max_len):
                for agents in _agents(place, max_len, reading, quick):
                    yield place, max_len, reading, agents


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    return [_run(system, *cell, quick) for cell in _cells(quick) for system in COMPARED]


def _pairs(slow: System, fast: System, setting: Setting, reading: Reading, quick: bool) -> list[Pair]:
    cells = [cell for cell in _cells(quick, setting) if cell[2] == reading]
    return [(_run(slow, *cell, quick), _run(fast, *cell, quick)) for cell in cells]


def _numbers(quick: bool) -> list[Number]:
    numbers = [number for setting in SETTINGS for reading in READINGS for number in _summary(setting, reading, quick)]
    for cell in _cells(quick):
        setting, max_len, reading, agents = cell
        name = f"{setting.name} {max_len}K, {READING_NAMES[reading]}, {agents} agents: gain over Basic (x)"
        pair = _run(BASIC, *cell, quick), _run(DUALPATH, *cell, quick)
        numbers.append(Number(name, None, gain(*pair), "A point of the plot."))
    return numbers


def _summary(setting: Setting, reading: Reading, quick: bool) -> list[Number]:
    start = f"{setting.name} {setting.topology}, {READING_NAMES[reading]}:"
    over_basic = _pairs(BASIC, DUALPATH, setting, reading, quick)
    over_oracle = _pairs(DUALPATH, ORACLE, setting, reading, quick)
    low, high = (1.09, 1.85) if setting is SMALL else (None, None)
    why = "The paper gives this range for 27B only; 660B it calls close to Oracle. Few agents make the low end."
    if len(over_oracle) == 1:
        low = None  # a range has no low end at one number of agents
    return [
        Number(
            f"{start} highest gain over Basic (x)", _PAPER_GAIN[setting.name],
            of_gains(max, over_basic), _UP_TO + (_SIMILAR if setting is QWEN else ""),
        ),
        Number(f"{start} lowest JCT over Oracle's (x)", low, of_gains(min, over_oracle), why),
        Number(f"{start} highest JCT over Oracle's (x)", high, of_gains(max, over_oracle), why),
    ]  # fmt: skip


def _plots(results: Results, quick: bool) -> list[Plot]:
    return [_plot(results, setting, max_len, quick) for setting in SETTINGS for max_len in _max_lens(quick)]


def _plot(results: Results, setting: Setting, max_len: int, quick: bool) -> Plot:
    def curve(system: System, reading: Reading) -> Curve:
        def jct_s(agents: float) -> float:
            return results[_run(system, setting, max_len, reading, int(agents), quick)].jct_s

        name = f"{system.name}, {READING_NAMES[reading]}"
        agents = _agents(setting, max_len, reading, quick)
        return Curve(name, points(agents, jct_s), system.colour, dashed=reading == "-append")

    return Plot(
        title=f"{setting.name} {setting.topology}, MaxLen {max_len}K", x_label="agents", y_label="JCT (s)", log_x=True,
        curves=[curve(system, reading) for reading in _readings(max_len) for system in COMPARED],
    )  # fmt: skip


OFFLINE = Figure(
    name="offline", title="Offline inference: job completion time",
    setting="All agents start together and ask the next turn at once; JCT until the last one is done. The paper gives "
    "gains in words, no table of times.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
