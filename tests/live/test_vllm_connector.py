"""The vLLM connector between real agents and a stand-in for vLLM: opaque pages, two ranks, smaller blocks, chunks,
preemptions, hits of vLLM's own cache; every layer's KV is checked before it is used, and so is every stored block."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from dualpath.core import wire
from dualpath.core.config_file import load_config
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.keys import chain_keys, pack_tokens, root_key
from dualpath.core.report import NodeStats, Role
from dualpath.core.request import Sampling
from dualpath.node.agent import Agent
from dualpath.store.memory import MemoryStore
from dualpath.transport.nic import NicPair
from dualpath.transport.open import open_transport
from live.fake_vllm import FakeVllm, kv_byte
from live.test_node_agents import SPEC, B, Node, run

RANKS, PARTS, WIDTH = 2, 2, 3  # bytes of a token in a layer and rank
LAYOUT = msgspec.structs.replace(SPEC.layout, token_bytes=WIDTH * RANKS, memory="fake")
VSPEC = msgspec.structs.replace(SPEC, layout=LAYOUT)
ROOT = root_key(LAYOUT)


def stored(tokens: list[int], block: int) -> bytes:
    """A stored block: [layers][ranks][parts][tokens backwards][width]."""
    size = B // PARTS
    return b"".join(
        bytes([kv_byte(tokens[p], p, layer, rank)]) * WIDTH
        for layer in range(LAYOUT.n_layers)
        for rank in range(RANKS)
        for part in range(PARTS)
        for p in reversed(range(block * B + part * size, block * B + (part + 1) * size))
    )


class Servers:
    """p0 and d0 with their agents, and the scheduler's part."""

    def __init__(self, p: Node, d: Node, store: MemoryStore) -> None:
        self.p, self.d, self.store, self.grant = p, d, store, 0
        self.known: set[bytes] = set()

    async def turn(self, tokens: list[int], generate: int, slots_at: int, rng: random.Random) -> list[int]:
        """One request, whose cached blocks are read by either side at random; returns the whole sequence."""
        keys = chain_keys(ROOT, pack_tokens(tokens), B)
        hit = 0
        while hit < len(keys) and hit * B < len(tokens) - 1 and keys[hit] in self.known:
            hit += 1
        hit = min(hit, (len(tokens) - 1) // B)
        by_prefill = sorted(rng.sample(range(hit), rng.randrange(hit + 1)))
        grant = self.grant = self.grant + 1
        slots = list(range(slots_at, slots_at + -(-(len(tokens) + generate) // B)))
        p_slots = [slots_at + i for i in range(len(by_prefill))]
        reads = [wire.ReadItem(slots[b], keys[b]) for b in range(hit) if b not in by_prefill]
        pulls = [(slots[b], s) for b, s in zip(by_prefill, p_slots, strict=True)]
        self.d.agent.receive(wire.OpenDecode(grant, EngineId("d0/0"), self.p.address, slots, reads, [], pulls))
        own = [wire.ReadItem(s, keys[b]) for b, s in zip(by_prefill, p_slots, strict=True)]
        self.p.agent.receive(wire.OpenPrefill(grant, EngineId("p0/0"), self.d.address, p_slots, by_prefill, own, slots))
        await self.d.wait(wire.ReadsFinished, grant)
        if by_prefill:
            await self.p.wait(wire.ReadsFinished, grant)
            self.d.agent.receive(wire.StartPull(grant))
        packed, rest = pack_tokens(tokens), (generate, Sampling(), "ipc:///none")
        self.p.agent.receive(wire.StartPrefill(grant, EngineId("p0/0"), RequestId("r"), packed, hit * B, *rest))
        await self.p.wait(wire.PrefillFinished, grant)
        items = [wire.PersistItem(slots[b], keys[b], keys[b - 1] if b else b"") for b in range(hit, len(keys))]
        self.d.agent.receive(wire.Persist(grant, items))
        if by_prefill:
            await self.d.wait(wire.CopyFinished, grant)
        self.p.agent.receive(wire.Release(grant))
        parent = keys[-1] if keys else ROOT
        args = (RequestId("r"), packed, 0, generate, Sampling(), slots, parent, "ipc:///none")
        self.d.agent.receive(wire.StartDecode(grant, EngineId("d0/0"), *args))
        finished = await self.d.wait(wire.DecodeFinished, grant)
        assert finished.completion_tokens == generate
        self.d.agent.receive(wire.Release(grant))
        await self.p.wait(wire.Released, grant)
        await self.d.wait(wire.Released, grant)
        whole = [*tokens, *range(200, 200 + generate)]
        self.known |= set(chain_keys(ROOT, pack_tokens(whole[:-1]), B))
        return whole


@asynccontextmanager
async def servers(folder: Path, seed: int) -> AsyncIterator[Servers]:
    store = MemoryStore(LAYOUT)
    overrides = {"storage": {"arena": str(64 * LAYOUT.block_bytes)}, "network": {"run_dir": str(folder)}}
    config = load_config(None, {**overrides, "limits": {"transfer_deadline_s": 5.0, "read_deadline_s": 5.0}})
    nodes, tasks, ends = [], [], []
    for name, role in (("p0", Role.PREFILL), ("d0", Role.DECODE)):
        nics, said = NicPair(None), []
        end = open_transport("shm", nics=nics, deadline_s=5)
        await end.start()
        node = Node(Agent(config, VSPEC, NodeStats(NodeId(name), role), store, end, nics, said.append), end.address)
        node.said = said
        tasks.append(asyncio.create_task(node.agent.engines.run()))
        path, made_seed = folder / f"agent-{name}.sock", seed + len(nodes)
        node.engine = await asyncio.to_thread(FakeVllm, path, VSPEC, made_seed, vllm_tokens=B // PARTS, ranks=RANKS)
        node.engine.start()
        nodes.append(node)
        ends.append(end)
    try:
        made = Servers(*nodes, store)
        yield made
        for node in nodes:
            assert node.engine.faults == []
    finally:
        for node in nodes:
            node.engine.left.set()
            await asyncio.to_thread(node.engine.join, 10)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node, end in zip(nodes, ends, strict=True):
            await end.close()
            await node.agent.close()


@pytest.mark.parametrize("number", range(3))
def test_random_turns_load_stream_and_keep_the_right_bytes(tmp_path: Path, number: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")

    async def agent(made: Servers, which: int) -> list[int]:
        rng = random.Random(seed + which)
        tokens: list[int] = []
        for _ in range(4):
            tokens = tokens + [rng.randrange(180) for _ in range(rng.randrange(1, 20))]
            tokens = await made.turn(tokens, rng.randrange(1, 9), which * 20, rng)
        return tokens

    async def test() -> None:
        async with servers(tmp_path, seed) as made:
            for tokens in await asyncio.gather(*(agent(made, which) for which in range(3))):
                keys = chain_keys(ROOT, pack_tokens(tokens[:-1]), B)
                for block, key in enumerate(keys):
                    for _ in range(500):
                        if await made.store.contains(key):
                            break
                        await asyncio.sleep(0.01)
                    into = memoryview(bytearray(LAYOUT.block_bytes))
                    await made.store.read(key, into)
                    assert bytes(into) == stored(tokens, block), f"block {block} of {len(keys)}"
            assert made.p.engine.loaded and made.d.engine.loaded
            print(f"preemptions {made.p.engine.preemptions} {made.d.engine.preemptions}")

    run(test)


def test_a_dropped_grant_comes_back_while_its_request_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with servers(tmp_path, 5) as made:
            task = asyncio.create_task(made.turn([1, 2, 3], 76, 0, random.Random(0)))
            await made.d.wait(wire.DecodeStarted)
            made.d.agent.receive(wire.Release(1))
            await made.d.wait(wire.Released, 1)
            running = [len(r.output) for r in made.d.engine.requests]
            assert running and running[0] < 76, "the server goes on for its client"
            task.cancel()
            assert not [m for m in made.d.said if isinstance(m, wire.DecodeFinished)]
            assert len(await made.turn([4, 5, 6], 5, 30, random.Random(0))) == 8, "and the next request is served"

    run(test)


def test_nothing_more_is_kept_of_what_runs_while_the_weights_change(tmp_path: Path) -> None:
    async def test() -> None:
        async with servers(tmp_path, 6) as made:
            made.d.engine.preempt = lambda: None  # it would begin again, and take its time
            task = asyncio.create_task(made.turn([1, 2, 3], 28, 0, random.Random(0)))
            await made.d.wait(wire.DecodeStarted)
            made.d.engine.planner.freeze()
            whole = await task
            keys = chain_keys(ROOT, pack_tokens(whole[:-1]), B)
            kept = [await made.store.contains(key) for key in keys]
            assert len(keys) == 7
            assert not any(kept[len(keys) // 2 :]), kept
            assert len(await made.turn([4, 5, 6], 5, 30, random.Random(0))) == 8, "the next request is kept again"

    run(test)
