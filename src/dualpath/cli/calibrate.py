"""The calibrate command."""

import functools
import sys
from pathlib import Path
from typing import Annotated

import typer

from dualpath.cli.options import with_config
from dualpath.cli.replay import OWN
from dualpath.core.config import Config

SETTINGS = "1P2D:15MB/s:8,2P1D:15MB/s:8,1P1D:30MB/s:4,2P2D:20MB/s:12"


@functools.partial(with_config, without=OWN)
def calibrate(
    config: Config,
    workload: Annotated[str, typer.Option(help="A preset or a trace file, as for replay.")] = "paper-64k",
    policies: Annotated[str, typer.Option(help="Read policies to predict.")] = "prefill-only,shorter-queue,split",
    agents: Annotated[int, typer.Option(help="Agents of the run to calibrate from.", min=1)] = 6,
    turns: Annotated[int, typer.Option(help="Turns of every agent, in all runs.", min=2)] = 6,
    shrink: Annotated[int, typer.Option(help="Divide all lengths by this.", min=1)] = 8,
    max_context: Annotated[int | None, typer.Option(help="A session ends before a longer turn.", min=1)] = 4096,
    seed: Annotated[int, typer.Option(help="Decides lengths and contents.", min=0)] = 0,
    settings: Annotated[
        str, typer.Option(help="TOPOLOGY:SNIC:AGENTS to replay live and to predict; empty: only make the profile.")
    ] = SETTINGS,
    out: Annotated[Path, typer.Option(help="Where the profile goes, for simulate's `profile`.")] = Path(
        "out/profile.json"
    ),
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
) -> None:
    """Make a profile of the live cluster from one short run, then hold the simulator's predictions against live runs.

    The run is one replay of shorter-queue under the given config; the settings replayed afterwards differ from it in
    topology, storage rate, policy and number of agents.
    """
    from rich.console import Console

    from dualpath.bench.calibrate.command import calibrate as run
    from dualpath.bench.calibrate.show import table, verdict
    from dualpath.bench.experiment import Experiment, check_output
    from dualpath.bench.results import write_json
    from dualpath.launch.signals import end_like_ctrl_c

    end_like_ctrl_c()
    for file in (out, json):
        if file:
            check_output(file)
    experiment = Experiment(
        workload=workload, policies=tuple(name.strip() for name in policies.split(",")), agents=agents, turns=turns,
        shrink=shrink, max_context=max_context, seed=seed,
    )  # fmt: skip
    result = run(config, experiment, settings)
    write_json(out, result.profile)
    if json:
        write_json(json, result)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    console.print(table(result.comparisons))
    for line in verdict(result.comparisons):
        console.print(line, markup=False)
    console.print(f"profile: {out}", markup=False)
