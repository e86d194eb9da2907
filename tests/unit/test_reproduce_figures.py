"""Every figure, fed with outcomes from a formula: rows, plots, and what happens when runs fail."""

import math
import xml.etree.ElementTree as ET

import pytest

from dualpath.bench.reproduce.figure import Figure, rows
from dualpath.bench.reproduce.figures import FIGURES
from dualpath.bench.reproduce.outcome import Outcome, Results
from dualpath.bench.reproduce.svg import svg
from dualpath.sim.scenario import Scenario, check
from reproduce_fakes import complete, fake_outcome

EACH = pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
SIZES = pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])


@EACH
@SIZES
def test_every_number_is_there_once_and_says_what_it_assumes(figure: Figure, quick: bool) -> None:
    found = rows(figure, complete(figure, quick), quick)
    assert len({row.name for row in found}) == len(found) > 0
    for row in found:
        assert row.ours is not None, row
        assert math.isfinite(row.ours)
        assert row.assumption
        assert (row.difference is None) == (row.paper is None)


@EACH
@SIZES
def test_scenarios_can_be_run(figure: Figure, quick: bool) -> None:
    for scenario in figure.scenarios(Results({}), quick):
        check(scenario)


@EACH
def test_failed_runs_leave_their_rows_and_say_why(figure: Figure) -> None:
    if not figure.scenarios(Results({}), True):
        pytest.skip("needs no simulation")
    results = complete(figure, True, lambda scenario: Outcome(error="out of memory"))
    found = rows(figure, results, True)
    assert len(found) == len(figure.numbers(True))
    assert all(row.ours is None and row.difference is None for row in found)
    assert any("out of memory" in row.assumption for row in found)
    assert all("no points" in svg(plot) for plot in figure.plots(results, True) if "paper" not in str(plot.curves))


@EACH
@SIZES
def test_plots_are_well_formed_and_have_units(figure: Figure, quick: bool) -> None:
    plots = figure.plots(complete(figure, quick), quick)
    assert plots
    for plot in plots:
        ET.fromstring(svg(plot).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
        assert plot.x_label and plot.y_label
        assert any(curve.points for curve in plot.curves)


def test_the_difference_is_relative_to_the_paper() -> None:
    figure = FIGURES["pd"]
    found = {row.name: row for row in rows(figure, complete(figure, True), True)}
    row = found["highest gain over Basic, table's totals (x)"]
    # 1P2D: two thirds of the nodes are decode nodes, both paths read with all three at twice the speed
    assert row.ours == pytest.approx(6.0)
    assert row.difference == pytest.approx(6.0 / 2.46 - 1)


def test_capacity_is_where_latency_crosses_the_level() -> None:
    def outcome(scenario: Scenario) -> Outcome:
        return fake_outcome(scenario)  # TTFT 1 / (1 - load): 4 s at three quarters of the speed

    figure = FIGURES["online"]
    found = {row.name: row.ours for row in rows(figure, complete(figure, False, outcome), False)}
    basic = found["660B, table's totals: capacity of Basic (agents/s)"]
    assert basic == pytest.approx(0.75 * 2 / 6, rel=0.04)
    assert found["660B, table's totals: capacity gain over Basic (x)"] == pytest.approx(6.0, rel=0.06)


def test_both_readings_of_the_agent_sets_are_shown() -> None:
    for name, figure in FIGURES.items():
        sets = {s.workload for s in figure.scenarios(Results({}), False)}
        if sets:
            assert any(s.endswith("-append") for s in sets) and any(not s.endswith("-append") for s in sets), name
