"""Our cluster of vLLM servers against stock vLLM with its NixlConnector and no storage tier, on the same work.

    python -m dualpath.bench.vllm_compare replay TRACE --vllm-python .venv-vllm/bin/python --topology 1P2D
    python -m dualpath.bench.vllm_compare fresh --vllm-python .venv-vllm/bin/python

The environment of --vllm-python needs NIXL besides: pip install --no-deps nixl nixl-cu12
"""

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from dualpath.bench.agents import Ask, Replayed, run_agents
from dualpath.bench.client import complete
from dualpath.bench.counters import settled_report
from dualpath.bench.experiment import Experiment
from dualpath.bench.nixl_servers import ENVIRONMENT, NixlServers
from dualpath.bench.replay import Result, measure
from dualpath.bench.results import Divergence, divergences, percentiles, write_json
from dualpath.bench.sessions import load_sessions, start_times
from dualpath.bench.warm import target_of
from dualpath.core.config import Config
from dualpath.core.config_file import load_config
from dualpath.core.served import served_spec
from dualpath.launch.folders import settle_folders
from dualpath.launch.local import LocalCluster
from dualpath.workload import Session

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
BLOCK_TOKENS = 64
SERVER = f"--dtype float32 --enforce-eager --block-size {BLOCK_TOKENS} --max-num-seqs 16"
COLUMNS = ("", "JCT", "x NIXL", "x base", "TTFT p50", "TPOT p50", "hit rate", "SNIC use", "CPU", "apart", "errors")
# Its KV takes longer to compute than to read
FAT = "tiny:layers=4,heads=8,kv_heads=4,head_dim=64,hidden=512,intermediate=1536"
Python = Annotated[str, typer.Option(help="Python of the environment with vLLM, dualpath and NIXL.")]
Topology = Annotated[str, typer.Option(help="As for dualpath up.")]


class Comparison(msgspec.Struct):
    """Everything that `replay` found."""

    nixl: Replayed
    nixl_cpu_s: float
    ours: Result
    divergences: dict[str, list[Divergence]]  # by policy, from the tokens of the baseline
    working_set_tokens: int  # of all sessions at their ends
    cache_tokens: int  # of each server's own prefix cache


@app.command()
def replay(
    workload: Annotated[str, typer.Argument(help="As for dualpath replay.")],
    vllm_python: Python,
    model: Annotated[str, typer.Option(help="As for dualpath up.")] = FAT,
    topology: Topology = "1P1D",
    snic: Annotated[str, typer.Option(help="Rate of each node's storage NIC.")] = "12MB/s",
    policies: Annotated[str, typer.Option(help="Read policies, the first is the base.")] = "prefill-only,split",
    agents: Annotated[int, typer.Option(min=1, help="Each with a session of its own.")] = 6,
    turns: Annotated[int, typer.Option(min=1, help="Each agent's first turns.")] = 24,
    shrink: Annotated[int, typer.Option(min=1, help="Divide all lengths by this.")] = 6,
    max_context: Annotated[int, typer.Option(min=1, help="Longest prompt and generation.")] = 4096,
    cache_blocks: Annotated[int, typer.Option(min=1, help="Of each server's own cache.")] = 128,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
) -> None:
    """JCT of agents in closed loop: NixlConnector first, then each read policy in a cluster of ours."""
    arguments = f"--max-model-len {max_context} --num-gpu-blocks-override {cache_blocks} --max-num-batched-tokens 1024"
    config = settle_folders(_config(vllm_python, model, arguments, topology, storage={"snic": snic}))
    experiment = Experiment(
        workload=workload, policies=tuple(policies.split(",")), agents=agents, turns=turns, shrink=shrink,
        max_context=max_context,
    )  # fmt: skip
    sessions = load_sessions(experiment, served_spec(config))
    nixl, cpu_s = _baseline(config, sessions, start_times(experiment))
    ours, measured = measure(config, experiment)
    found = Comparison(
        nixl, cpu_s, ours,
        {one.run.policy: divergences(nixl.turns, one.replayed.turns) for one in measured},
        sum(_last_context(nixl, agent) for agent in range(agents)), cache_blocks * BLOCK_TOKENS,
    )  # fmt: skip
    if json:
        write_json(json, found)
    _show(found)


def _baseline(config: Config, sessions: list[Session], starts_s: list[float]) -> tuple[Replayed, float]:
    """What agents saw of stock vLLM, and the CPU time of its servers."""
    with tempfile.TemporaryDirectory(prefix="dualpath-nixl-") as folder, NixlServers(config, Path(folder)) as servers:
        before_s = sum(servers.cpu_s().values())
        replayed = run_agents(
            servers.complete, sessions, starts_s, think=False, on_turn=lambda: None, check=servers.check
        )
        return replayed, sum(servers.cpu_s().values()) - before_s


def _last_context(replayed: Replayed, agent: int) -> int:
    return max((len(turn.tokens) + turn.prompt_tokens for turn in replayed.turns if turn.agent == agent), default=0)


def _show(found: Comparison) -> None:
    table = Table(title=f"{found.ours.runs[0].topology}, {found.ours.runs[0].turns} turns")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    nixl, base_s = found.nixl, found.ours.runs[0].jct_s
    ttft_s, tpot_s = (percentiles([getattr(turn, name) for turn in nixl.turns])[0] for name in ("ttft_s", "tpot_s"))
    rows: list[tuple[Any, ...]] = [
        ("NIXL, no storage", nixl.jct_s, 1.0, base_s / nixl.jct_s, ttft_s, tpot_s, None, None, found.nixl_cpu_s, "-",
         len(nixl.errors))
    ]  # fmt: skip
    rows += [
        (run.policy, run.jct_s, nixl.jct_s / run.jct_s, base_s / run.jct_s, run.ttft_p50_s, run.tpot_p50_s,
         run.hit_rate, run.snic_utilisation, sum(run.cpu_s.values()), len(found.divergences[run.policy]), run.errors)
        for run in found.ours.runs
    ]  # fmt: skip
    for row in rows:
        table.add_row(*map(_cell, row))
    console = _console()
    console.print(table)
    share = found.cache_tokens / found.working_set_tokens
    console.print(
        f"working set {found.working_set_tokens} tokens; each server's own cache {found.cache_tokens} ({share:.0%})"
    )
    for messages in (nixl.errors, *(run.error_messages for run in found.ours.runs)):
        for message in messages:
            console.print(message, markup=False)


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else str(value)


class Round(msgspec.Struct):
    """One system's figures of one round."""

    ttft_p50_s: float
    tokens_per_s: float  # prompt and output


@app.command()
def fresh(
    vllm_python: Python,
    model: Annotated[str, typer.Option(help="As for dualpath up.")] = "smollm2",
    topology: Topology = "1P1D",
    requests: Annotated[int, typer.Option(min=1, help="In a round.")] = 16,
    at_once: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 4,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt; no two share a block.")] = 512,
    generate: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Of both systems, interleaved; the first one more warms up.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts.")] = 0,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
) -> None:
    """TTFT and throughput where nothing can be reused: both systems are up, and asked in turn."""
    arguments = f"--max-model-len {prompt + generate + BLOCK_TOKENS} --max-num-batched-tokens {2 * prompt}"
    rng = random.Random(seed)
    found: dict[str, list[Round]] = {"nixl": [], "dualpath": []}

    def work() -> list[list[int]]:
        return [[rng.randrange(32, 20_000) for _ in range(prompt)] for _ in range(requests)]

    with tempfile.TemporaryDirectory(prefix="dualpath-fresh-") as folder:
        storage = {"path": f"{folder}/store"}
        config = settle_folders(_config(vllm_python, model, arguments, topology, storage=storage))
        with NixlServers(config, Path(folder)) as servers, LocalCluster(config) as cluster:
            target = msgspec.structs.replace(target_of(cluster), fields={})
            for _ in range(rounds + 1):
                servers.resume()
                found["nixl"].append(asyncio.run(_round(servers.complete, work(), generate, at_once)))
                servers.check()
                servers.pause()
                found["dualpath"].append(asyncio.run(_round(partial(complete, target), work(), generate, at_once)))
                settled_report(cluster.url, cluster.config.limits.heartbeat_s, durable=True)
    warm = {name: of_system[1:] for name, of_system in found.items()}
    if json:
        write_json(json, warm)
    _show_rounds(warm)


async def _round(ask: Ask, prompts: list[list[int]], generate: int, at_once: int) -> Round:
    places = asyncio.Semaphore(at_once)
    start_s = time.monotonic()

    async def one(prompt: list[int]) -> float:
        async with places:
            answer = await ask(prompt, generate)
            return answer.times_s[0] - answer.sent_s

    ttfts_s = await asyncio.gather(*(one(prompt) for prompt in prompts))
    took_s = time.monotonic() - start_s
    return Round(median(ttfts_s), sum(len(prompt) + generate for prompt in prompts) / took_s)


def _show_rounds(found: dict[str, list[Round]]) -> None:
    table = Table("", "TTFT p50", "tokens/s", "x TTFT of NIXL", "x tokens/s of NIXL", title="medians")
    nixl = found["nixl"]
    for name, rounds in found.items():
        pairs = list(zip(rounds, nixl, strict=True))
        figures = (
            median(one.ttft_p50_s for one in rounds), median(one.tokens_per_s for one in rounds),
            median(one.ttft_p50_s / base.ttft_p50_s for one, base in pairs),
            median(one.tokens_per_s / base.tokens_per_s for one, base in pairs),
        )  # fmt: skip
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    _console().print(table)


def _config(python: str, model: str, arguments: str, topology: str, **sections: dict[str, Any]) -> Config:
    os.environ.update(ENVIRONMENT)  # for our own servers
    overrides: dict[str, dict[str, Any]] = {
        "model": {"name": model},
        "cluster": {"topology": topology},
        "engine": {"kind": "vllm", "python": python, "arguments": f"{SERVER} {arguments}"},
        "network": {"port": 0},
        **sections,
    }
    return load_config(None, overrides)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers are ended then, too
    app()
