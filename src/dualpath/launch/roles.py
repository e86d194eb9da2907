"""Which processes a config means."""

import os
import sys
from pathlib import Path

from dualpath.core.config import Config
from dualpath.launch.process import Role

GATEWAY_STAGE, SCHEDULER_STAGE, ENGINE_STAGE, AGENT_STAGE = range(4)  # the order in which they are stopped


def cluster_roles(config: Config, config_file: Path) -> list[Role]:
    """One scheduler, one gateway, an agent a node, and the engines, which share the machine's cores."""
    engine_threads = max(1, len(os.sched_getaffinity(0)) // len(config.engines))
    return [
        _role("gateway", ["gateway"], config_file, GATEWAY_STAGE),
        _role("scheduler", ["scheduler"], config_file, SCHEDULER_STAGE),
        *(
            _role(f"engine {engine}", ["engine", engine], config_file, ENGINE_STAGE, threads=engine_threads)
            for engine in config.engines
        ),
        *(_role(f"agent {node}", ["agent", node], config_file, AGENT_STAGE) for node in config.nodes),
    ]


def _role(name: str, arguments: list[str], config_file: Path, stage: int, *, threads: int = 1) -> Role:
    command = (sys.executable, "-m", "dualpath", *arguments, "--config", str(config_file))
    env = {
        "OMP_NUM_THREADS": str(threads),  # as many threads as cores in every process would fight for them
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # models are local folders; nothing may be fetched behind the operator's back
    }
    return Role(name, command, stage, env)
