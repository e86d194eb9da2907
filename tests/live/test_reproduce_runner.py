"""Runs of a reproduction in processes: results, deaths, interruption, resumption."""

import multiprocessing
import time
from pathlib import Path

import pytest

from dualpath.bench.reproduce.cache import Cache
from dualpath.bench.reproduce.figure import Figure
from dualpath.bench.reproduce.outcome import Missing, Results
from dualpath.bench.reproduce.runner import Progress, Runner
from dualpath.sim.scenario import Scenario
from reproduce_fakes import fake_outcome, quick_work


def figure(*scenarios: Scenario) -> Figure:
    return Figure(
        name="x", title="x", setting="x", scenarios=lambda results, quick: list(scenarios),
        numbers=lambda quick: [], plots=lambda results, quick: [],
    )  # fmt: skip


def runner(tmp_path: Path, seen: list[Progress] | None = None) -> Runner:
    return Runner(Cache(tmp_path, "v"), 2, (seen if seen is not None else []).append, quick_work)


def test_all_scenarios_of_all_figures_are_run_once(tmp_path: Path) -> None:
    first, second, third = (Scenario(agents=agents) for agents in (1, 2, 3))
    seen: list[Progress] = []
    results = runner(tmp_path, seen).run([figure(first, second), figure(second, third)], False)
    assert [results[s] for s in (first, second, third)] == [fake_outcome(s) for s in (first, second, third)]
    assert (seen[-1].done, seen[-1].needed, seen[-1].requests) == (3, 3, 6)
    assert max(progress.running for progress in seen) <= 2


def test_a_search_asks_on_when_it_knows_more(tmp_path: Path) -> None:
    chain = [Scenario(agents=agents) for agents in range(1, 5)]

    def scenarios(results: Results, quick: bool) -> list[Scenario]:
        known = next((i for i, s in enumerate(chain) if s not in results), len(chain))
        return chain[: known + 1]

    asking = figure()
    asking = Figure(name="x", title="x", setting="x", scenarios=scenarios, numbers=asking.numbers, plots=asking.plots)
    Cache(tmp_path, "v").put(chain[1], fake_outcome(chain[1]))
    assert chain[3] in runner(tmp_path).run([asking], False)


def test_a_process_that_dies_or_raises_is_a_failed_run(tmp_path: Path) -> None:
    good, killed, raising = (Scenario(seed=seed) for seed in (0, 1, 3))
    results = runner(tmp_path).run([figure(good, killed, raising)], False)
    assert results[good] == fake_outcome(good)
    with pytest.raises(Missing, match="exit code -9"):
        results[killed]
    with pytest.raises(Missing, match="exit code 1"):
        results[raising]
    assert Cache(tmp_path, "v").get(killed) is None, "what died is tried again by the next call"


def test_an_interrupted_call_keeps_what_ended_and_leaves_no_process(tmp_path: Path) -> None:
    done, slow = Scenario(agents=2), Scenario(seed=2, agents=1)
    began_s = time.monotonic()

    def interrupt(progress: Progress) -> None:
        if progress.done or time.monotonic() - began_s > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Runner(Cache(tmp_path, "v"), 2, interrupt, quick_work).run([figure(done, slow)], False)
    assert time.monotonic() - began_s < 30
    assert Cache(tmp_path, "v").get(done) == fake_outcome(done)
    assert not multiprocessing.active_children()
