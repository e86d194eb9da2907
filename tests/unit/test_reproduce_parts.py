"""Search, balance, axes, cache and report of a reproduction."""

import json
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dualpath.bench.reproduce.axis import linear_axis
from dualpath.bench.reproduce.cache import Cache, source_hash
from dualpath.bench.reproduce.figure import rows
from dualpath.bench.reproduce.figures import FIGURES
from dualpath.bench.reproduce.outcome import Missing, Outcome, Results
from dualpath.bench.reproduce.page import Report, count_words, page
from dualpath.bench.reproduce.reproduce import chosen
from dualpath.bench.reproduce.search import highest_load
from dualpath.bench.reproduce.show import reasons, table
from dualpath.bench.reproduce.work import balance
from dualpath.core.errors import ConfigError
from dualpath.sim.scenario import Scenario
from dualpath.sim.series import Series
from reproduce_fakes import complete, fake_outcome


def search_to_the_end(capacity: float, start: float) -> float:
    outcomes: dict[Scenario, Outcome] = {}
    for _ in range(60):
        found = highest_load(
            Results(outcomes), lambda aps: Scenario(aps=aps), lambda outcome: outcome.jct_s <= capacity, start, 0.03
        )
        if found.highest is not None:
            return found.highest
        new = [s for s in found.asked.values() if s not in outcomes]
        assert len(new) == 1, "one run at a time"
        outcomes[new[0]] = Outcome(jct_s=new[0].aps or 0.0)
    raise AssertionError("no end")


@given(st.floats(0.05, 20), st.floats(0.05, 20))
@settings(max_examples=60, deadline=None)
def test_the_search_ends_just_below_the_capacity(capacity: float, start: float) -> None:
    assert capacity / 1.035 <= search_to_the_end(capacity, start) <= capacity


def test_a_search_without_any_good_load_gives_up() -> None:
    with pytest.raises(Missing, match="no end"):
        search_to_the_end(0.0, 1.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
@example([5e-324])
@example([0.0, 5e-324])
@settings(max_examples=60, deadline=None)
def test_all_values_lie_on_the_axis(values: list[float]) -> None:
    axis = linear_axis(values, 300, 20)
    assert all(20 - 1e-6 <= axis.place(value) <= 300 + 1e-6 for value in values)
    assert 2 <= len(axis.ticks) <= 9


def test_balance_weighs_busy_intervals() -> None:
    # One node reads alone for 10 s, then both evenly ten times as much for 90 s
    time_s = [float(t) for t in range(1, 101)]
    first = [min(t, 10.0) + max(0.0, t - 10) * 10 for t in time_s]
    second = [max(0.0, t - 10) * 10 for t in time_s]
    found = balance(Series(time_s=time_s), {"p0": first, "d0": second}, 100.0)
    assert found is not None
    assert found.points[0] == (5.0, 2.0)
    assert found.points[-1] == (100.0, 1.0)
    assert found.early == pytest.approx(2.0)
    assert found.lowest == pytest.approx(1.0)
    assert found.weighted == pytest.approx((10 + 900) / (5 + 900))


def test_an_idle_series_has_no_balance() -> None:
    found = balance(Series(time_s=[1.0, 2.0, 3.0]), {"p0": [0.0] * 3, "d0": [0.0] * 3}, 3.0)
    assert found is not None and (found.points, found.weighted) == ([], None)
    assert balance(Series(), {}, 0.0) is None


def test_the_cache_forgets_with_the_source(tmp_path: Path) -> None:
    scenario = Scenario(agents=3)
    outcome = fake_outcome(scenario)
    Cache(tmp_path, "one").put(scenario, outcome)
    assert Cache(tmp_path, "one").get(scenario) == outcome
    assert Cache(tmp_path, "one").get(Scenario(agents=4)) is None
    assert Cache(tmp_path, "two").get(scenario) is None
    for file in tmp_path.iterdir():
        file.write_text("{half")
    assert Cache(tmp_path, "one").get(scenario) is None
    assert source_hash() == source_hash()


def test_a_cache_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name another"):
        Cache(tmp_path / "file" / "folder", "v")


def test_unknown_figures_are_named() -> None:
    with pytest.raises(ConfigError, match="no figure 'offlin'; there are cache-compute, offline"):
        chosen(["offlin"])
    assert [figure.name for figure in chosen(["pd", "offline"])] == ["offline", "pd"]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def report(quick: bool) -> Report:
    figures = [FIGURES["pd"], FIGURES["online"]]
    results = {figure.name: complete(figure, quick) for figure in figures}
    return Report(
        figures=figures, rows=[row for f in figures for row in rows(f, results[f.name], quick)],
        plots={f.name: f.plots(results[f.name], quick) for f in figures}, quick=quick, version="0" * 64,
    )  # fmt: skip


def test_the_report_needs_nothing_else() -> None:
    text = page(report(quick=True))
    tags = _Tags()
    tags.feed(text)
    assert all(link.startswith("#") for link in tags.links)
    assert "http" not in text
    assert "Quick set." in text and "Quick set." not in page(report(quick=False))
    for row in report(quick=True).rows:
        assert row.name.replace("'", "&#x27;") in text


def test_rows_of_the_json_have_the_agreed_keys() -> None:
    rows_json = json.loads(msgspec.json.encode({"rows": report(quick=True).rows}))["rows"]
    assert set(rows_json[0]) == {"figure", "name", "paper", "ours", "difference", "assumption"}


def test_what_differs_is_explained() -> None:
    found = report(quick=True).rows
    assert table(found, "all").row_count == len(found)
    far = [row for row in found if row.difference is not None and abs(row.difference) > 0.1]
    lines = reasons(found)
    assert far and all(any(line.endswith(row.name) for line in lines) for row in far)
    assert f"of the {sum(row.paper is not None for row in found)} numbers" in count_words(found)
