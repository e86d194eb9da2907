"""Servers that an operator starts himself: two ranks each, small blocks, and a KV cache so small that vLLM preempts."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from dualpath.core.config import Config
from dualpath.engine.checkpoints import default_cache_dir, resolve_model
from dualpath.launch.local import LocalCluster
from dualpath.launch.process import Role
from dualpath.launch.roles import cluster_roles
from vllm_tests.servers import SERVER, START_S, Server, cluster, complete, plain_server, report, settled
from vllm_tests.test_vllm_right_tokens import assert_equal

CACHE_TOKENS = 1536  # of each server: about four of the requests below
SMALL = (
    f"{SERVER} --block-size 32 --num-gpu-blocks-override {CACHE_TOKENS // 32 + 1} --max-num-batched-tokens 256 "
    "--disable-hybrid-kv-cache-manager --enable-scale-out"
)
TWO_RANKS = "--tensor-parallel-size 2"


@dataclass
class ByHand:
    """Scheduler, gateway and agents of a cluster, and one server for each node."""

    cluster: LocalCluster
    tiny: Path
    servers: dict[str, Server]

    def server(self, node: str, log: Path, arguments: str = SMALL, **changes: Any) -> Server:
        extra = {"agent": str(self.cluster.config.run_path / f"agent-{node}.sock")}
        transfer = {
            "kv_connector": "DualPathConnector", "kv_connector_module_path": "dualpath.vllm", "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute", "kv_connector_extra_config": extra, **changes,
        }  # fmt: skip
        return Server(self.tiny, log, arguments, transfer)


def without_engines(config: Config, config_file: Path) -> list[Role]:
    return [role for role in cluster_roles(config, config_file) if not role.name.startswith("engine")]


@pytest.fixture(scope="module")
def tiny() -> Path:
    return resolve_model("tiny:heads=4,kv_heads=2,head_dim=32,hidden=128", cache_dir=default_cache_dir())


@pytest.fixture(scope="module")
def by_hand(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    folder = tmp_path_factory.mktemp("by-hand")
    whole = cluster(tiny, folder / "store", scheduling={"read_policy": "split"}, storage={"arena": "64MiB"})
    running = LocalCluster(whole.config, make_roles=without_engines)
    with ExitStack() as ends:
        ends.callback(running.stop)
        running.start()
        made = ByHand(running, tiny, {})
        deadline_s = time.monotonic() + START_S
        while not all((running.config.run_path / f"agent-{node}.sock").exists() for node in ("p0", "d0")):
            assert time.monotonic() < deadline_s, "no agents"
            time.sleep(0.1)
        for node in ("p0", "d0"):
            made.servers[node] = ends.enter_context(made.server(node, folder / f"{node}.log", f"{SMALL} {TWO_RANKS}"))
        for server in made.servers.values():
            server.wait_ready()
        running.wait_ready()
        yield made


@pytest.fixture(scope="module")
def plain_tiny(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with plain_server(tiny, tmp_path_factory.mktemp("plain-tiny") / "server.log") as url:
        yield url


@pytest.mark.timeout(600)
def test_tokens_equal_plain_vllm_with_two_ranks_under_preemption(by_hand: ByHand, plain_tiny: str) -> None:
    seed = random.randrange(1 << 20)
    print(f"seed {seed}")
    rng = random.Random(seed)

    def some(count: int) -> list[int]:
        return [rng.randrange(32, 250) for _ in range(count)]

    prompts, decode = [[] for _ in range(6)], by_hand.servers["d0"]
    hits = 0
    with ThreadPoolExecutor(2) as pool:
        for turn in range(3):
            prompts = [prompt + some(100) for prompt in prompts]
            strangers = [[some(150), some(150)] for _ in range(3)]  # served past the scheduler, which leaves no room
            beside = pool.submit(answers_to_pairs, by_hand.cluster.url, strangers)
            got = complete(by_hand.cluster.url, prompts, tokens=80)
            hits += sum(answer.cached > 0 for answer in got)
            assert_equal(got, complete(plain_tiny, prompts, tokens=80), f"turn {turn}")
            assert beside.result() == answers_to_pairs(plain_tiny, strangers)
            prompts = [prompt + answer.ids for prompt, answer in zip(prompts, got, strict=True)]
            settled(by_hand.cluster.url)
    assert hits >= 10, "second and third turns find what the ones before left"
    assert decode.metric("vllm:num_preemptions_total") > 0, "nothing was preempted: the test shows too little"
    assert by_hand.servers["p0"].metric("vllm:dualpath_filled_bytes_total") > 0
    assert not report(by_hand.cluster.url).recomputes


def answers_to_pairs(url: str, pairs: list[list[list[int]]]) -> list[list[str]]:
    """Texts of requests with two prompts each, all at once."""

    def one(prompts: list[list[int]]) -> list[str]:
        body = {"model": "model", "prompt": prompts, "max_tokens": 200, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=240, trust_env=False)
        assert answer.status_code == 200, answer.text
        return [choice["text"] for choice in answer.json()["choices"]]

    with ThreadPoolExecutor(len(pairs)) as pool:
        return list(pool.map(one, pairs))


@pytest.mark.timeout(600)
def test_servers_that_do_not_fit_are_refused_with_the_mend(by_hand: ByHand, tmp_path: Path) -> None:
    wanted = {
        "no agent": (by_hand.server("p7", tmp_path / "no agent", SMALL), "is it running"),
        "ranks": (by_hand.server("d0", tmp_path / "ranks", SMALL), "ranks=1"),
    }
    with ExitStack() as ends:
        for server, _ in wanted.values():
            ends.enter_context(server)
        for what, (server, words) in wanted.items():
            assert words in server.refusal(), f"{what}: {server.log.read_text()[-3000:]}"
