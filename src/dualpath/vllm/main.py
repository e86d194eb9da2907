"""A vLLM server with our connector, as `dualpath up --engine vllm` starts it."""

import json
import os
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

from dualpath.core.config import Config
from dualpath.core.ids import EngineId, node_of
from dualpath.launch.port import free_port
from dualpath.vllm.version import check_version


def run(config: Config, engine: EngineId) -> None:
    """Serve in this process until SIGTERM, as `python -m vllm.entrypoints.openai.api_server` does."""
    check_version()
    address = config.host_of(node_of(engine)).address
    port = free_port(address, 0)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # OMP_NUM_THREADS is set for each server
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_cpu_cache_gib(config)))
    sys.argv = ["vllm", *arguments(config, engine, address, port)]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


def _cpu_cache_gib(config: Config) -> int:
    """An eighth of this host's memory, shared by all engines: on CPUs vLLM would take half of it for each server."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, memory // (8 * len(config.engines) << 30))


def arguments(config: Config, engine: EngineId, address: str, port: int) -> list[str]:
    """The server's command line. What the operator adds comes last, and so wins."""
    model = config.model
    line = [
        "--model", model.path or model.name, "--served-model-name", config.served_name,
        "--host", address, "--port", str(port),
        "--kv-transfer-config", json.dumps(transfer_config(config, engine, f"http://{address}:{port}")),
        "--disable-hybrid-kv-cache-manager", "--disable-uvicorn-access-log",
        "--enable-scale-out",  # the gateway has prompts rendered
    ]  # fmt: skip
    if model.max_context:
        line += ["--max-model-len", str(model.max_context)]
    if config.network.api_key:
        os.environ["VLLM_API_KEY"] = config.network.api_key  # not on the command line, where others would see it
    return [*line, *shlex.split(config.engine.arguments)]


def transfer_config(config: Config, engine: EngineId, url: str) -> dict[str, Any]:
    """The value of --kv-transfer-config."""
    agent = str(config.agent_socket(node_of(engine)))
    extra: dict[str, Any] = {"agent": agent, "url": url, "block_tokens": config.model.block_tokens}
    if config.model.version:
        extra["model_version"] = config.model.version
    if config.network.key_file:
        extra["key_file"] = str(Path(config.network.key_file).expanduser())
    return {
        "kv_connector": "DualPathConnector",
        "kv_connector_module_path": "dualpath.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra,
    }
