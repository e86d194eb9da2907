"""The experiment: the same agents against a fresh cluster for each read policy, from equal stores."""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from dualpath import __version__
from dualpath.bench.agents import Replayed, run_agents
from dualpath.bench.base_store import BaseStore, private_place
from dualpath.bench.client import complete
from dualpath.bench.counters import Cost, Meter
from dualpath.bench.display import Display, Line
from dualpath.bench.experiment import Experiment, check, cluster_config
from dualpath.bench.results import Run, speedups, summarise
from dualpath.bench.sessions import load_sessions, start_times
from dualpath.bench.warm import check_capacity, fill_store, target_of
from dualpath.core.config import Config
from dualpath.core.layout import BlockLayout
from dualpath.core.served import served_spec
from dualpath.launch.folders import settle_folders
from dualpath.launch.local import LocalCluster
from dualpath.workload import Session, WorkloadStatistics, workload_statistics


class Result(msgspec.Struct, kw_only=True):
    """Everything that a replay found, and what it was asked."""

    runs: list[Run]
    speedup: dict[str, float]  # over the first policy; medians over pairs
    workload: WorkloadStatistics  # as planned: its hits are the best possible ones
    experiment: Experiment
    config: dict[str, Any]
    version: str
    cores: int


class Measured(NamedTuple):
    """One policy's run before it is summed up."""

    run: Run
    replayed: Replayed
    cost: Cost


def replay(config: Config, experiment: Experiment) -> Result:
    """Run the experiment; ConfigError before any cluster starts when it cannot be run."""
    return measure(config, experiment)[0]


def measure(config: Config, experiment: Experiment) -> tuple[Result, list[Measured]]:
    """The same, with every turn of every run."""
    check(experiment, config)
    with tempfile.TemporaryDirectory(prefix="dualpath-replay-") as folder:
        config = settle_folders(private_place(cluster_config(config, config.scheduling.read_policy), Path(folder)))
        spec = served_spec(config)
        sessions = load_sessions(experiment, spec)
        with Display() as display:
            store = _filled_store(config, experiment, sessions, spec.layout, display)
            measured = _Replay(config, experiment, sessions, store, display).run()
    runs = [one.run for one in measured]
    result = Result(
        runs=runs,
        speedup=speedups(runs),
        workload=workload_statistics(sessions, block_tokens=spec.layout.block_tokens, across_sessions=True),
        experiment=experiment,
        config=msgspec.to_builtins(config),
        version=__version__,
        cores=len(os.sched_getaffinity(0)),
    )
    return result, measured


def _filled_store(
    config: Config, experiment: Experiment, sessions: list[Session], layout: BlockLayout, display: Display
) -> BaseStore:
    """The store with the first contexts, if they are to be there. How vLLM's blocks lie only its servers know."""
    if experiment.warm or config.engine.kind == "vllm":
        line = display.line("first contexts", 0)
        line.begin()
        layout = fill_store(config, sessions if experiment.warm else [])
        line.end()
    store = BaseStore(config, layout)
    store.remember()
    return store


class _Replay:
    def __init__(
        self, config: Config, experiment: Experiment, sessions: list[Session], store: BaseStore, display: Display
    ) -> None:
        self._config = config
        self._experiment = experiment
        self._sessions = sessions
        self._turns = sum(len(session.turns) for session in sessions)
        self._store = store
        self._display = display

    def run(self) -> list[Measured]:
        """All pairs of all policies, in order."""
        try:
            return self._compare()
        finally:
            self._store.remove()

    def _compare(self) -> list[Measured]:
        runs: list[Measured] = []
        first: Replayed | None = None
        for pair in range(self._experiment.pairs):
            for policy in self._experiment.policies:
                config = cluster_config(self._config, policy)
                replayed, cost = self._measure(config, self._display.line(policy, self._turns))
                first = first or replayed
                run = summarise(
                    policy, pair, config.cluster.topology, replayed, first, cost,
                    block_tokens=self._store.layout.block_tokens,
                    rate_bytes_per_s=config.snic_bytes_per_s, cnic_bytes_per_s=config.cnic_bytes_per_s,
                )  # fmt: skip
                runs.append(Measured(run, replayed, cost))
        return runs

    def _measure(self, config: Config, line: Line) -> tuple[Replayed, Cost]:
        """One run in a cluster of its own: what the agents saw, and what it cost."""
        with LocalCluster(config) as cluster:
            meter = Meter(cluster)
            check_capacity(cluster, self._sessions)
            line.begin()
            replayed = run_agents(
                partial(complete, target_of(cluster)), self._sessions, start_times(self._experiment),
                think=self._experiment.think or self._experiment.aps is not None,
                on_turn=line.advance, check=cluster.check,
            )  # fmt: skip
            line.end()
            cost = meter.stop()
        self._store.restore()
        return replayed, cost
