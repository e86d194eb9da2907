"""The plan command."""

from pathlib import Path
from typing import Annotated

import typer

from dualpath.core.errors import ConfigError

AGENTS = 64  # of a simulation: enough to keep a few nodes busy, few enough to wait for
_NUMBERS = "Workload in numbers"
_NODES = "Nodes"


def plan(
    workload: Annotated[
        str | None, typer.Argument(help="paper-32k, -48k or -64k, or a trace file; or give --context and so on.")
    ] = None,
    context: Annotated[
        float | None, typer.Option(help="Mean tokens of a prompt, cached ones included.", rich_help_panel=_NUMBERS)
    ] = None,
    append: Annotated[
        float | None, typer.Option(help="Tokens that a turn adds to its prompt.", rich_help_panel=_NUMBERS)
    ] = None,
    gen: Annotated[float | None, typer.Option(help="Tokens that a turn generates.", rich_help_panel=_NUMBERS)] = None,
    turns: Annotated[
        float | None, typer.Option(help="Turns of an agent; 1: nothing is reused.", rich_help_panel=_NUMBERS)
    ] = None,
    topology: Annotated[
        str | None, typer.Option(help="Prefill and decode nodes. Default: 2P4D.", rich_help_panel=_NODES)
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Try all P + D of so many nodes.", min=1, max=1000, rich_help_panel=_NODES)
    ] = None,
    hardware: Annotated[
        str, typer.Option(help="hopper, h20, a100, cpu-server, or a TOML file.", rich_help_panel=_NODES)
    ] = "hopper",
    model: Annotated[
        str,
        typer.Option(help="deepseek-v3.2, qwen2.5-32b, ..., or a Hugging Face config.json.", rich_help_panel=_NODES),
    ] = "deepseek-v3.2",
    profile: Annotated[
        Path | None,
        typer.Option(help="Measured rates (dualpath doctor) or engines (dualpath calibrate).", rich_help_panel=_NODES),
    ] = None,
    snic: Annotated[str, typer.Option(help="A node's storage NIC: 400Gbit/s.", rich_help_panel=_NODES)] = "",
    cnic: Annotated[str, typer.Option(help="An engine's compute NIC.", rich_help_panel=_NODES)] = "",
    dram: Annotated[str, typer.Option(help="A node's DRAM, reads and writes: 500GB/s.", rich_help_panel=_NODES)] = "",
    storage: Annotated[
        str, typer.Option(help="What storage gives all nodes together. Default: no limit.", rich_help_panel=_NODES)
    ] = "",
    agents: Annotated[
        int | None, typer.Option(help="Agents that ask without pause; without it, as many as can be served.", min=1)
    ] = None,
    block_tokens: Annotated[int, typer.Option(help="Tokens of a block; only whole ones are reused.", min=1)] = 64,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Also simulate each topology, with --agents (64), and compare.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
) -> None:
    """Say how many prefill and decode nodes to take, what they can serve, and whether both read paths help.

    Everything is a closed form: each NIC, memory and engine allows so many requests a second, and the least of them is
    what the cluster does at best. Queues come on top: --simulate shows them.

    Examples:

      dualpath plan paper-64k --nodes 6                          best P and D of six nodes of the paper

      dualpath plan --context 32700 --append 429 --gen 176 --turns 157 --model qwen2.5-32b --topology 1P2D

      dualpath plan paper-32k --profile host.json --cnic 100Gbit/s    with rates that dualpath doctor measured
    """
    from rich.console import Console

    from dualpath.bench.experiment import check_output
    from dualpath.bench.plan_answer import make_plan
    from dualpath.bench.plan_physics import Hardware, nodes_of
    from dualpath.bench.plan_show import show
    from dualpath.bench.plan_work import work_of_numbers, work_of_workload
    from dualpath.bench.results import write_json

    if json:
        check_output(json)
    numbers = {"--context": context, "--append": append, "--gen": gen, "--turns": turns}
    _check_choice(workload, numbers, topology, nodes)
    if simulate and not workload:
        raise ConfigError("--simulate needs agents turn by turn: name a workload, such as paper-64k, or a trace file")
    if workload:
        work = work_of_workload(workload, block_tokens)
    else:
        work = work_of_numbers(context or 0, append or 0, gen or 0, turns or 0, block_tokens)
    given = Hardware(
        hardware=hardware, model=model, profile=str(profile) if profile else None, snic=snic, cnic=cnic, dram=dram,
        storage=storage,
    )  # fmt: skip
    made = nodes_of(given)
    agents = agents or AGENTS if simulate else agents
    found = make_plan(made, _topologies(topology, nodes), work, agents)
    if simulate and workload:
        from dualpath.bench.plan_simulate import simulated

        found = simulated(found, made, workload, block_tokens)
    if json:
        write_json(json, found)
    show(Console(highlight=False), found)


def _topologies(topology: str | None, nodes: int | None) -> list[str]:
    if nodes is None:
        return [topology or "2P4D"]
    return [f"{prefill}P{nodes - prefill}D" for prefill in range(1, nodes)]


def _check_choice(
    workload: str | None, numbers: dict[str, float | None], topology: str | None, nodes: int | None
) -> None:
    """ConfigError for values that are missing or say the same twice."""
    missing = [name for name, value in numbers.items() if value is None]
    if workload and len(missing) < len(numbers):
        raise ConfigError("name a workload or give its numbers, not both")
    if not workload and missing:
        raise ConfigError(f"name a workload, such as paper-64k, or give its numbers; {', '.join(missing)} are missing")
    if topology and nodes is not None:
        raise ConfigError("give --topology or --nodes, not both")
