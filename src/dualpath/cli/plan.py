"""The plan command."""

from pathlib import Path
from typing import Annotated

import typer

from dualpath.core.errors import ConfigError

AGENTS = 64  # of a simulation: enough to keep a few nodes busy, few enough to wait for


def _number(description: str) -> object:
    return typer.Option(help=description, rich_help_panel="Workload in numbers")


def _node(description: str, low: int | None = None, high: int | None = None) -> object:
    return typer.Option(help=description, rich_help_panel="Nodes", min=low, max=high)


Workload = Annotated[
    str | None, typer.Argument(help="paper-32k, -48k or -64k, or a trace file; or give --context and so on.")
]
Context = Annotated[float | None, _number("Mean tokens of a prompt, cached ones included.")]
Append = Annotated[float | None, _number("Tokens that a turn adds to its prompt.")]
Gen = Annotated[float | None, _number("Tokens that a turn generates.")]
Turns = Annotated[float | None, _number("Turns of an agent; 1: nothing is reused.")]
Topology = Annotated[str | None, _node("Prefill and decode nodes. Default: 2P4D.")]
NodeCount = Annotated[int | None, _node("Try all P + D of so many nodes.", low=1, high=1000)]
HardwareName = Annotated[str, _node("hopper, h20, a100, cpu-server, or a TOML file.")]
ModelName = Annotated[str, _node("deepseek-v3.2, qwen2.5-32b, ..., or a Hugging Face config.json.")]
Profile = Annotated[Path | None, _node("Measured rates (dualpath doctor) or engines (dualpath calibrate).")]
Snic = Annotated[str, _node("A node's storage NIC: 400Gbit/s.")]
Cnic = Annotated[str, _node("An engine's compute NIC.")]
Dram = Annotated[str, _node("A node's DRAM, reads and writes together: 500GB/s.")]
Storage = Annotated[str, _node("What storage gives all nodes together. Default: no limit.")]
Agents = Annotated[
    int | None, typer.Option(help="Agents that ask without pause; without it, as many as can be served.", min=1)
]
BlockTokens = Annotated[int, typer.Option(help="Tokens of a block; only whole ones are reused.", min=1)]
Simulate = Annotated[
    bool, typer.Option("--simulate", help=f"Also simulate each topology, with --agents (or {AGENTS}), and compare.")
]
Json = Annotated[Path | None, typer.Option(help="File for all figures.")]


def plan(
    workload: Workload = None, context: Context = None, append: Append = None, gen: Gen = None, turns: Turns = None,
    topology: Topology = None, nodes: NodeCount = None, hardware: HardwareName = "hopper",
    model: ModelName = "deepseek-v3.2", profile: Profile = None, snic: Snic = "", cnic: Cnic = "", dram: Dram = "",
    storage: Storage = "", agents: Agents = None, block_tokens: BlockTokens = 64, simulate: Simulate = False,
    json: Json = None,
) -> None:  # fmt: skip
    """Say how many prefill and decode nodes to take, what they can serve, and whether both read paths help.

    Everything is a closed form: each NIC, memory and engine allows so many requests a second, and the least of them is
    what the cluster does at best. Queues come on top: --simulate shows them.

    Examples:

      dualpath plan paper-64k --nodes 6    (best P and D of six nodes of the paper)

      dualpath plan --context 32700 --append 429 --gen 176 --turns 157 --model qwen2.5-32b --topology 1P2D

      dualpath plan paper-32k --profile host.json --cnic 100Gbit/s    (rates that dualpath doctor measured)
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
    _check_choice(workload, numbers, topology, nodes, simulate)
    if workload:
        work = work_of_workload(workload, block_tokens)
    else:
        work = work_of_numbers(context or 0, append or 0, gen or 0, turns or 0, block_tokens)
    made = nodes_of(Hardware(
        hardware=hardware, model=model, profile=str(profile) if profile else None, snic=snic, cnic=cnic, dram=dram,
        storage=storage,
    ))  # fmt: skip
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
    workload: str | None, numbers: dict[str, float | None], topology: str | None, nodes: int | None, simulate: bool
) -> None:
    """ConfigError for values that are missing or say the same twice."""
    missing = [name for name, value in numbers.items() if value is None]
    if workload and len(missing) < len(numbers):
        raise ConfigError("name a workload or give its numbers, not both")
    if not workload and missing:
        raise ConfigError(f"name a workload, such as paper-64k, or give its numbers; {', '.join(missing)} are missing")
    if topology and nodes is not None:
        raise ConfigError("give --topology or --nodes, not both")
    if simulate and not workload:
        raise ConfigError("--simulate needs agents turn by turn: name a workload, such as paper-64k, or a trace file")
