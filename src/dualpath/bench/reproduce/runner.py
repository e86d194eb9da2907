"""Simulates what figures need, each scenario in a process of its own, a bounded number at a time."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

import msgspec

from dualpath.bench.reproduce.cache import Cache
from dualpath.bench.reproduce.figure import Figure
from dualpath.bench.reproduce.outcome import Outcome, Results
from dualpath.bench.reproduce.work import run
from dualpath.sim.scenario import Scenario

_POLL_S = 0.2
_REPORT_TURNS = 500

Work = Callable[[Scenario, Callable[[int], None]], Outcome]


class Progress(msgspec.Struct, frozen=True):
    """Runs that are known, all that are needed so far, and simulated requests answered by this command."""

    done: int
    needed: int
    running: int
    requests: int


class Runner:
    """`jobs` processes at once. `on_progress` is called a few times a second."""

    def __init__(self, cache: Cache, jobs: int, on_progress: Callable[[Progress], None], work: Work = run) -> None:
        self._cache = cache
        self._jobs = jobs
        self._on_progress = on_progress
        self._work = work
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["dualpath.bench.reproduce.work"])
        self._requests = self._context.Value("q", 0)
        self._running: dict[Scenario, Any] = {}
        self._outcomes: dict[Scenario, Outcome] = {}

    def run(self, figures: Sequence[Figure], quick: bool) -> Results:
        """All that the figures need. When interrupted, what has ended is in the cache."""
        results = Results(self._outcomes)
        try:
            while True:
                needed = list(dict.fromkeys(s for figure in figures for s in figure.scenarios(results, quick)))
                if self._take_from_cache(needed):
                    continue  # what is known may ask for more
                waiting = [s for s in needed if s not in self._outcomes and s not in self._running]
                waiting.sort(key=lambda scenario: -scenario.agents)  # the longest first, so that none is left alone
                for scenario in waiting[: self._jobs - len(self._running)]:
                    self._start(scenario)
                self._report(needed)
                if not self._running:
                    return results
                self._wait_for_one(needed)
        finally:
            self._stop()

    def _take_from_cache(self, needed: Sequence[Scenario]) -> bool:
        """Whether there was any."""
        unknown = (s for s in needed if s not in self._outcomes and s not in self._running)
        found = {scenario: outcome for scenario in unknown if (outcome := self._cache.get(scenario))}
        self._outcomes |= found
        return bool(found)

    def _start(self, scenario: Scenario) -> None:
        process = self._context.Process(
            target=_simulate, args=(self._work, scenario, self._cache, self._requests), daemon=True
        )
        process.start()
        self._running[scenario] = process

    def _wait_for_one(self, needed: Sequence[Scenario]) -> None:
        while not wait([process.sentinel for process in self._running.values()], timeout=_POLL_S):
            self._report(needed)
        for scenario, process in list(self._running.items()):
            if process.exitcode is not None:
                del self._running[scenario]
                died = Outcome(error=f"its process ended with exit code {process.exitcode}")
                self._outcomes[scenario] = self._cache.get(scenario) or died
                process.close()

    def _report(self, needed: Sequence[Scenario]) -> None:
        done = sum(scenario in self._outcomes for scenario in needed)
        self._on_progress(Progress(done, len(needed), len(self._running), self._requests.value))

    def _stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.join()
        self._running.clear()


def _simulate(work: Work, scenario: Scenario, cache: Cache, requests: Any) -> None:
    """In the process: the outcome goes into the cache, from where the parent takes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    unreported = 0

    def on_turn(turns: int) -> None:
        nonlocal unreported
        unreported += turns
        if unreported >= _REPORT_TURNS:
            with requests.get_lock():
                requests.value += unreported
            unreported = 0

    outcome = work(scenario, on_turn)
    cache.put(scenario, outcome)
    with requests.get_lock():
        requests.value += unreported
