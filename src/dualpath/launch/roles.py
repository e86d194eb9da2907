"""Which processes a config means."""

import os
import sys
from pathlib import Path

from dualpath.core.config import CONTROL, Config, Host
from dualpath.core.ids import node_of
from dualpath.launch.process import Role

GATEWAY_STAGE, SCHEDULER_STAGE, ENGINE_STAGE, AGENT_STAGE = range(4)  # the order in which they are stopped


def cluster_roles(config: Config, config_file: Path) -> list[Role]:
    """One scheduler, one gateway, an agent a node, and the engines, which share the machine's cores."""
    engine_threads = max(1, len(os.sched_getaffinity(0)) // len(config.engines))
    python = (config.engine.kind == "vllm" and config.engine.python) or sys.executable
    return [
        _role("gateway", ["gateway"], config_file, GATEWAY_STAGE, config.host_of(CONTROL)),
        _role("scheduler", ["scheduler"], config_file, SCHEDULER_STAGE, config.host_of(CONTROL)),
        *(
            _role(
                f"engine {engine}", ["engine", engine], config_file, ENGINE_STAGE, config.host_of(node_of(engine)),
                threads=engine_threads, python=python,
            )
            for engine in config.engines
        ),
        *(
            _role(f"agent {node}", ["agent", node], config_file, AGENT_STAGE, config.host_of(node))
            for node in config.nodes
        ),
    ]  # fmt: skip


def _role(
    name: str, arguments: list[str], config_file: Path, stage: int, host: Host, *, threads: int = 1,
    python: str = sys.executable,
) -> Role:  # fmt: skip
    command = (*host.launch, python, "-m", "dualpath", *arguments, "--config", str(config_file))
    env = {
        "OMP_NUM_THREADS": str(threads),  # as many threads as cores in every process would fight for them
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # models are local folders; nothing may be fetched behind the operator's back
    }
    return Role(name, command, stage, env)
