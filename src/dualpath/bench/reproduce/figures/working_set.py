"""How much KV the running agents hold: arrival rate * mean JCT * mean total length / 2 (paper section 6)."""

from statistics import mean

from msgspec.structs import replace

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.figures.loads import online
from dualpath.bench.reproduce.measures import Measure, value
from dualpath.bench.reproduce.outcome import Results
from dualpath.bench.reproduce.plot import Curve, Plot, points
from dualpath.bench.reproduce.size import readings
from dualpath.bench.reproduce.systems import DUALPATH, READING_NAMES, V32, Reading
from dualpath.sim.models import load_model
from dualpath.sim.run import load_lengths
from dualpath.sim.scenario import Scenario

PAPER_GB = {0.1: 69.0, 0.45: 681.0}
_SAMPLE = 64  # agents, for the mean of their total lengths


def _run(aps: float, reading: Reading, quick: bool) -> Scenario:
    return online(DUALPATH, V32, reading, aps, quick)


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    return [_run(aps, reading, quick) for reading in readings(quick) for aps in PAPER_GB]


def working_set_gb(scenario: Scenario) -> Measure:
    """Half of the mean total, since agents are halfway in the mean; bytes as the model's KV takes them."""
    few = load_lengths(replace(scenario, agents=_SAMPLE))
    total_tokens = mean(float(session.prompt[-1] + session.gen[-1]) for session in few)
    agent_bytes = total_tokens / 2 * load_model(scenario.model).kv_bytes_per_token
    jct_s, rate = value(scenario, "agent_jct_mean_s"), scenario.aps or 0.0
    return lambda results: rate * jct_s(results) * agent_bytes / 1e9


def _numbers(quick: bool) -> list[Number]:
    return [
        Number(
            f"{aps:g} agents/s, {READING_NAMES[reading]}: working set (GB)", paper,
            working_set_gb(_run(aps, reading, quick)),
            "JCT is the mean over all agents of the run, those of its filling and draining included.",
        )
        for reading in readings(quick)
        for aps, paper in PAPER_GB.items()
    ]  # fmt: skip


def _plots(results: Results, quick: bool) -> list[Plot]:
    def curve(reading: Reading) -> Curve:
        marks = points(PAPER_GB, lambda aps: working_set_gb(_run(aps, reading, quick))(results))
        return Curve(READING_NAMES[reading], marks, "dualpath" if reading == "" else "sixth")

    paper = Curve("paper", list(PAPER_GB.items()), "dualpath", paper=True)
    return [Plot(
        title="660B 2P4D, 64K", x_label="agents a second", y_label="working set (GB)",
        curves=[*(curve(reading) for reading in readings(quick)), paper],
    )]  # fmt: skip


WORKING_SET = Figure(
    name="working-set", title="Working set",
    setting="660B on 2P4D, MaxLen 64K, online: KV of the agents that run, by the paper's formula.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
