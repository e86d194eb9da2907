"""Real vLLM servers for tests: a plain one that says what is right, and clusters of ours."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec

from dualpath.bench.client import VLLM_GAPS
from dualpath.core.config_file import load_config, save_config
from dualpath.core.model import ModelSpec
from dualpath.core.report import ClusterReport
from dualpath.launch.local import LocalCluster
from dualpath.launch.port import free_port
from dualpath.scheduler.zmq_client import ZmqSchedulerClient

PYTHON = os.environ.get("DUALPATH_VLLM_PYTHON", "")
ABSENT = "no vLLM: `make test-vllm` installs it and runs these tests"
MAX_TOKENS = 1536
START_S = 240.0
SERVER = (
    f"--dtype float32 --enforce-eager --block-size 64 --max-model-len {MAX_TOKENS} --max-num-seqs 16 "
    "--enable-auto-tool-choice --tool-call-parser hermes"
)
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # starts sooner; servers with several ranks have processes all the same
}  # fmt: skip


@dataclass
class Answer:
    """A completion."""

    ids: list[int]
    cached: int  # -1 from a plain server
    gaps: list[float]  # between the two best log-probabilities, where asked for


def cluster(folder: Path, store: Path, arguments: str = "", **sections: dict[str, Any]) -> LocalCluster:
    """A cluster of vLLM servers that serves `folder`; sections as in the configuration file."""
    overrides: dict[str, dict[str, Any]] = {
        "model": {"name": "model", "path": str(folder), "served_name": "model"},
        "engine": {"kind": "vllm", "python": PYTHON, "arguments": f"{SERVER} {arguments}"},
        "storage": {"path": str(store), "arena": "256MiB"},
        "network": {"port": 0},
        "limits": {"start_deadline_s": START_S},
    }
    for name, values in sections.items():
        overrides[name] = {**overrides.get(name, {}), **values}
    os.environ.update(ENVIRONMENT)
    return LocalCluster(load_config(None, overrides))


@contextmanager
def plain_server(folder: Path, log: Path) -> Iterator[str]:
    """The address of a vLLM server without any connector."""
    with Server(folder, log, f"{SERVER} --no-enable-prefix-caching") as server:
        server.wait_ready()
        yield server.url


class Server:
    """A vLLM server as an operator starts it."""

    def __init__(self, folder: Path, log: Path, arguments: str, transfer: dict[str, Any] | None = None) -> None:
        """`transfer`: value of --kv-transfer-config; the server's own url is added to its extra config."""
        port = free_port("127.0.0.1", 0)
        self.url, self.log = f"http://127.0.0.1:{port}", log
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--served-model-name", "model", "--port", str(port), "--host", "127.0.0.1", *arguments.split()]
        if transfer:
            extra = {"url": self.url, **transfer["kv_connector_extra_config"]}
            command += ["--kv-transfer-config", json.dumps({**transfer, "kv_connector_extra_config": extra})]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_ready(self) -> None:
        """Until it serves."""
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2, trust_env=False).is_success:
                    return
            time.sleep(0.2)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def refusal(self) -> str:
        """What a server that does not start says."""
        assert self.process.wait(START_S) != 0
        return self.log.read_text()

    def metric(self, name: str) -> float:
        """Sum over a family's labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))


def complete(url: str, prompts: Sequence[str | list[int]], tokens: int = 24, **fields: Any) -> list[Answer]:
    """Greedy completions, all at once; answers in order. A refusal fails the test with the server's words."""

    async def one(http: httpx.AsyncClient, prompt: str | list[int]) -> Answer:
        body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
        response = await http.post(f"{url}/v1/completions", json={**body, "ignore_eos": True, **VLLM_GAPS, **fields})
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        best = [sorted(top.values(), reverse=True) for top in choice["logprobs"]["top_logprobs"]]
        cached = int(response.headers.get("x-dualpath-cached-tokens", -1))
        return Answer(choice["token_ids"], cached, [top[0] - top[1] for top in best])

    async def all_at_once() -> list[Answer]:
        async with httpx.AsyncClient(timeout=240) as http:
            return await asyncio.gather(*(one(http, prompt) for prompt in prompts))

    return asyncio.run(all_at_once())


def report(url: str) -> ClusterReport:
    """The cluster's state."""
    return msgspec.json.decode(httpx.get(f"{url}/cluster", timeout=10).content, type=ClusterReport)


def decode_urls(running: LocalCluster) -> list[str]:
    """Where the decode servers themselves are."""
    return _ask_scheduler(running, lambda client: client.urls)


def spec_of(running: LocalCluster) -> ModelSpec:
    """What the cluster serves."""
    return _ask_scheduler(running, lambda client: client.spec)


def _ask_scheduler(running: LocalCluster, question: Callable[[ZmqSchedulerClient], Any]) -> Any:
    async def ask() -> Any:
        endpoint = f"ipc://{running.config.run_path}/test-tokens.sock"
        client = await ZmqSchedulerClient.connect(running.config.scheduler_endpoint, endpoint, 10)
        try:
            return question(client)
        finally:
            await client.close()

    return asyncio.run(ask())


def settled(url: str) -> ClusterReport:
    """The state once all write-backs have ended and nothing runs."""
    deadline_s = time.monotonic() + 60
    while (state := report(url)).pending_writes or state.running_requests or state.waiting_requests:
        assert time.monotonic() < deadline_s, f"not settled: {state}"
        time.sleep(0.1)
    return state


def tokens_of(url: str, prompt: str) -> list[int]:
    """The prompt as tokens."""
    answer = httpx.post(f"{url}/tokenize", json={"model": "model", "prompt": prompt}, timeout=30)
    tokens: list[int] = answer.json()["tokens"]
    return tokens


def choose_policy(running: LocalCluster, policy: str) -> None:
    """Restart the scheduler with another read policy: agents and servers join it again."""
    scheduling = msgspec.structs.replace(running.config.scheduling, read_policy=policy)
    running.config = msgspec.structs.replace(running.config, scheduling=scheduling)
    save_config(running.config, running.config.run_path / "config.json")
    running.kill("scheduler")
    time.sleep(1)
    running.wait_ready()
