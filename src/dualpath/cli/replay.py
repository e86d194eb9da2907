"""The replay command."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from dualpath.cli.options import with_config
from dualpath.core.config import Config
from dualpath.core.errors import ServiceError

POLICIES = "prefill-only,shorter-queue,split,unthrottled"
# What every run chooses for itself, and two values whose flags mean something else here
OWN = (
    "storage_path", "network_host", "network_port", "network_api_key", "network_run_dir", "network_scheduler",
    "scheduling_read_policy", "model_max_context",
)  # fmt: skip


@functools.partial(with_config, without=OWN)
def replay(
    config: Config,
    workload: Annotated[
        str, typer.Argument(help="paper-32k, -48k or -64k, with -append at the end or not, or a trace file.")
    ],
    read_policy: Annotated[
        str, typer.Option(help="Read policies to compare, in order; unthrottled: split without any rate limit.")
    ] = POLICIES,
    agents: Annotated[int, typer.Option(help="Agents, each with a session of its own.", min=1)] = 8,
    turns: Annotated[int | None, typer.Option(help="Only each agent's first turns.", min=1)] = None,
    shrink: Annotated[int, typer.Option(help="Divide all lengths by this; the turns stay.", min=1)] = 1,
    max_context: Annotated[int | None, typer.Option(help="A session ends before a longer turn.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Decides lengths, contents and arrivals.", min=0)] = 0,
    warm: Annotated[
        bool, typer.Option("--warm/--cold", help="Whether first prompts are cached when the clock starts.")
    ] = True,
    aps: Annotated[float | None, typer.Option(help="Agents a second, Poisson; otherwise all start together.")] = None,
    think: Annotated[bool, typer.Option("--think", help="Wait between turns as recorded, also without --aps.")] = False,
    pairs: Annotated[int, typer.Option(help="Times to run the list, interleaved; medians are shown.", min=1)] = 1,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
) -> None:
    """Run agents against a fresh cluster for each read policy, and compare.

    The next turn contains the model's real output. All policies start from the same store.
    """
    from rich.console import Console

    from dualpath.bench import display
    from dualpath.bench.experiment import Experiment, check_output
    from dualpath.bench.replay import replay as run
    from dualpath.bench.results import write_json
    from dualpath.launch.signals import end_like_ctrl_c

    end_like_ctrl_c()
    if json:
        check_output(json)
    policies = tuple(name.strip() for name in read_policy.split(","))
    result = run(config, Experiment(
        workload=workload, policies=policies, agents=agents, turns=turns, shrink=shrink, max_context=max_context,
        seed=seed, warm=warm, aps=aps, think=think, pairs=pairs,
    ))  # fmt: skip
    if json:
        write_json(json, result)
    console = Console(highlight=False)
    console.print(display.table(result.runs, result.speedup))
    for remark in display.remarks(result.runs, result.speedup):
        console.print(remark, markup=False)
    if any(run.errors or run.restarted for run in result.runs):
        raise ServiceError("requests failed or roles died; the figures do not count")
