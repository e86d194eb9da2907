"""What breaks costs time, never right tokens, and comes back without a restart of the others."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dualpath.core.keys import chain_keys, pack_tokens, root_key
from dualpath.launch.local import LocalCluster
from dualpath.store.base import Store
from dualpath.store.open import open_store
from vllm_tests.servers import Answer, choose_policy, complete, report, settled, spec_of, tokens_of
from vllm_tests.test_vllm_right_tokens import TIE, assert_equal, conversations, passage

pytestmark = pytest.mark.timeout(400)


def edit_block(running: LocalCluster, tokens: list[int], edit: Callable[[bytearray], None]) -> None:
    """Change the first stored block of a prompt, and write it with a right checksum."""
    spec = spec_of(running)
    key = chain_keys(root_key(spec.layout), pack_tokens(tokens), spec.layout.block_tokens)[0]

    async def change(store: Store) -> None:
        await store.open()
        block = bytearray(spec.layout.block_bytes)
        await store.read(key, memoryview(block))
        edit(block)
        await store.delete(key)
        await store.write(key, memoryview(block))
        await store.close()

    asyncio.run(change(open_store(running.config.storage.path, spec.layout)))


def test_loaded_kv_is_used_and_a_damaged_block_is_not(running: LocalCluster, plain: str) -> None:
    choose_policy(running, "split")
    prompt = passage("A damaged block", 900, 110)
    want = complete(plain, [prompt])
    assert_equal(complete(running.url, [prompt]), want, "first")
    settled(running.url)
    tokens = tokens_of(running.url, prompt)
    assert_equal(complete(running.url, [prompt]), want, "from the store")
    layer = spec_of(running).layout.layer_block_bytes

    def zero_a_layer(block: bytearray) -> None:
        block[3 * layer : 4 * layer] = bytes(layer)

    edit_block(running, tokens, zero_a_layer)
    zeroed = complete(running.url, [prompt])
    assert zeroed[0].cached > 0
    moved = max(abs(a - b) for a, b in zip(zeroed[0].gaps, want[0].gaps, strict=True))
    assert zeroed[0].ids != want[0].ids or moved > 10 * TIE, "loaded KV is what is computed with: a lost layer shows"
    file = max(Path(running.config.storage.path).rglob("*"), key=lambda p: (p.is_file(), p.stat().st_mtime_ns))
    data = bytearray(file.read_bytes())
    data[-5 * layer : -4 * layer] = bytes(layer)
    file.write_bytes(data)
    assert_equal(complete(running.url, [prompt]), want, "with a block that its checksum refuses")
    assert sum(report(running.url).recomputes.values()) > 0


class Load(threading.Thread):
    """Turns of several agents in the background."""

    def __init__(self, url: str, plain: str, seed: int, agents: int = 4, turns: int = 3) -> None:
        super().__init__(daemon=True)
        self.url, self.plain = url, plain
        self.agents = conversations(seed, agents, turns, 90)
        self.asked: list[list[str]] = []
        self.answers: list[list[Answer]] = []
        self.error: Exception | None = None

    def run(self) -> None:
        prompts = [""] * len(self.agents)
        try:
            for turn in range(len(self.agents[0])):
                prompts = [prompt + agent[turn] for prompt, agent in zip(prompts, self.agents, strict=True)]
                self.asked.append(prompts)
                self.answers.append(complete(self.url, prompts))
        except Exception as error:
            self.error = error

    def check(self) -> None:
        self.join(300)
        assert not self.is_alive(), "still not served"
        assert self.error is None, self.error
        for turn, (asked, got) in enumerate(zip(self.asked, self.answers, strict=True)):
            assert_equal(got, complete(self.plain, asked), f"turn {turn}")


@pytest.mark.parametrize("victim", ["agent p0", "agent d0", "scheduler", "engine p0/0", "engine d0/0"])
def test_a_role_dies_in_mid_run(running: LocalCluster, plain: str, victim: str) -> None:
    seed = random.randrange(1 << 20)
    print(f"seed {seed}")
    others = {name: pid for name, pid in running.pids().items() if name != victim}
    load = Load(running.url, plain, seed)
    load.start()
    time.sleep(4)
    running.kill(victim)
    load.check()
    running.wait_ready()
    assert {name: pid for name, pid in running.pids().items() if name != victim} == others, "nobody else started again"
    again = [p for asked in load.asked for p in asked][-2:]
    assert_equal(complete(running.url, again), complete(plain, again), "afterwards")


def test_a_stream_ends_with_a_clear_error_when_its_decode_server_dies(running: LocalCluster) -> None:
    body = {"model": "model", "prompt": "Once upon a time", "max_tokens": 900, "stream": True, "ignore_eos": True}
    lines = []
    with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=120) as response:
        for line in response.iter_lines():
            lines.append(line)
            if len(lines) == 20:
                running.kill("engine d0/0")
    assert "decode server was lost" in "".join(lines[-3:])
    running.wait_ready()


def test_the_store_goes_away_and_comes_back(running: LocalCluster, plain: str) -> None:
    seed = random.randrange(1 << 20)
    print(f"seed {seed}")
    store = Path(running.config.storage.path)
    load = Load(running.url, plain, seed)
    load.start()
    time.sleep(4)
    away = store.rename(store.with_name("away"))
    time.sleep(5)
    away.rename(store)
    load.check()
    settled(running.url)
    again = load.asked[-1]
    assert_equal(complete(running.url, again), complete(plain, again), "afterwards")


def test_a_client_that_leaves_frees_everything(running: LocalCluster) -> None:
    prompt = passage("A client that leaves", 0, 300)
    body = {"model": "model", "prompt": prompt, "max_tokens": 900, "stream": True, "ignore_eos": True}

    async def read(body: dict[str, Any]) -> None:
        url = f"{running.url}/v1/completions"
        async with httpx.AsyncClient(timeout=60) as http, http.stream("POST", url, json=body) as response:
            async for _ in response.aiter_raw():
                pass

    for wait_s in (0.05, 0.5, 2.5):
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(read(body), wait_s))
    settled(running.url)
    deadline_s = time.monotonic() + 20
    while any(node.arena_slots_used for node in report(running.url).nodes):
        assert time.monotonic() < deadline_s, report(running.url)
        time.sleep(0.1)
