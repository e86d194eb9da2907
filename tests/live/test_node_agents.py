"""Agents, real transports and shared memory, engines as threads, a scripted scheduler: what lands where."""

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dualpath.core import engine_wire, wire
from dualpath.core.config_file import load_config
from dualpath.core.errors import ConfigError, ServiceError
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.keys import chain_keys, pack_tokens, unpack_tokens
from dualpath.core.layout import BlockLayout
from dualpath.core.model import ModelSpec
from dualpath.core.report import NodeStats, Role
from dualpath.core.request import FinishReason, Sampling
from dualpath.node.agent import Agent
from dualpath.node.client import AgentClient, BatchAborted, SharedLayers
from dualpath.store.base import Store
from dualpath.store.faulty import FaultyStore
from dualpath.store.memory import MemoryStore
from dualpath.store.wrapper import StoreWrapper
from dualpath.transport.nic import NicPair
from dualpath.transport.open import open_transport

B = 4  # tokens a block
LAYOUT = BlockLayout(model="m", n_layers=3, block_tokens=B, token_bytes=16, dtype="float32")
SIZE, LAYER, TOKEN = LAYOUT.block_bytes, LAYOUT.layer_block_bytes, LAYOUT.token_bytes
SPEC = ModelSpec("m", "", LAYOUT, 1, 1, 2, 256, 1000, ())
ROOT = b"root"


def kv(token: int, position: int, layer: int) -> bytes:
    """The fake model: the KV of a token in a layer."""
    return bytes((token * 31 + position * 7 + layer * 101 + i) % 256 for i in range(TOKEN))


def layer_kv(tokens: list[int], first: int, stop: int, layer: int) -> bytes:
    return b"".join(kv(tokens[p], p, layer) for p in range(first, stop))


def block_kv(tokens: list[int], block: int) -> bytes:
    return b"".join(layer_kv(tokens, block * B, block * B + B, layer) for layer in range(LAYOUT.n_layers))


class FakeEngine(threading.Thread):
    """Attaches and obeys until the agent is gone or `leave` is set; what goes wrong is kept in `faults`."""

    role = Role.DECODE
    kv_tokens = 1000

    def __init__(self, path: Path, engine: str, layout: BlockLayout = LAYOUT) -> None:
        super().__init__(daemon=True)
        self.path, self.engine, self.layout = path, EngineId(engine), layout
        self.faults: list[str] = []
        self.left = threading.Event()
        self.client: AgentClient
        self.shared: SharedLayers

    def hello(self) -> engine_wire.EngineHello:
        spec = msgspec.structs.replace(SPEC, layout=self.layout)
        window = self.kv_tokens if self.role is Role.PREFILL else 0
        return engine_wire.EngineHello(
            wire.PROTOCOL_VERSION, self.engine, self.role, spec, self.kv_tokens, window, 100.0
        )

    def run(self) -> None:
        self.client = AgentClient(self.path, self.hello())
        self.shared = SharedLayers(self.path, self.engine)
        try:
            while not self.left.is_set():
                for message in self.client.receive(0.02):
                    self.on(message)
        except ServiceError:
            pass
        except Exception as error:
            self.faults.append(repr(error))
        finally:
            self.client.close()
            self.shared.close()

    def on(self, message: Any) -> None:
        if isinstance(message, engine_wire.DropGrant):
            self.client.send(engine_wire.GrantDropped(message.grant))


class FakeDecode(FakeEngine):
    """Checks the prompt's KV in the arena, generates 200, 201, ... and hands over every block that this completes."""

    def on(self, message: Any) -> None:
        super().on(message)
        if isinstance(message, wire.StartDecode):
            self.client.send(wire.DecodeStarted(message.grant))
            self.decode(message)

    def slot(self, slot: int) -> memoryview:
        return self.shared.arena.view[slot * SIZE : (slot + 1) * SIZE]

    def decode(self, start: wire.StartDecode) -> None:
        prompt = unpack_tokens(start.tokens)
        for position in range(len(prompt)):
            slot, at = self.slot(start.slots[position // B]), position % B * TOKEN
            for layer in range(LAYOUT.n_layers):
                if slot[layer * LAYER + at :][:TOKEN] != kv(prompt[position], position, layer):
                    self.faults.append(f"wrong KV at token {position}, layer {layer}")
        tokens = [*prompt, start.first_token, *range(200, 200 + start.max_tokens - 1)]
        keys = [start.parent_key] * (len(prompt) // B)
        keys += chain_keys(start.parent_key, pack_tokens(tokens[len(keys) * B :]), B)
        for block in range(len(prompt) // B, (len(tokens) - 1) // B):
            self.slot(start.slots[block])[:] = block_kv(tokens, block)
            parent = keys[block - 1] if block else b""
            self.client.send(engine_wire.BlockFilled(start.grant, start.slots[block], keys[block], parent))
        self.client.send(wire.DecodeFinished(start.grant, FinishReason.LENGTH, start.max_tokens))


class FakePrefill(FakeEngine):
    """Layerwise prefill in chunks of `chunk_blocks`, several requests a batch as they come."""

    role = Role.PREFILL
    kv_tokens = 64
    chunk_blocks = 1000
    die_in_layer: int | None = None

    def __init__(self, path: Path, engine: str, layout: BlockLayout = LAYOUT) -> None:
        super().__init__(path, engine, layout)
        self.next_layer = 0
        self.hold = threading.Event()  # cleared: compute no further layer
        self.hold.set()
        self.aborted = 0

    def on(self, message: Any) -> None:
        super().on(message)
        if isinstance(message, wire.StartPrefill):
            self.client.send(wire.PrefillStarted(message.grant))
            try:
                self.prefill(message)
            except BatchAborted:
                self.aborted += 1
                self.shared.control.set_computed(self.next_layer)

    def prefill(self, start: wire.StartPrefill) -> None:
        tokens, done = unpack_tokens(start.tokens), start.cached_tokens
        while done < len(tokens):
            new = min(len(tokens) - done, self.chunk_blocks * B)
            self.batch(start.grant, tokens, done, new)
            done += new
        self.client.send(wire.PrefillFinished(start.grant, 199, 0))

    def batch(self, grant: int, tokens: list[int], cached: int, new: int) -> None:
        assert self.shared.window
        first, half = self.next_layer, self.shared.window.size_bytes // 2
        self.next_layer += LAYOUT.n_layers
        self.client.send(engine_wire.StreamBatch(first, [engine_wire.StreamItem(grant, 0, cached // B, cached, new)]))
        for layer in range(LAYOUT.n_layers):
            if layer == self.die_in_layer:
                raise RuntimeError("dies")
            self.shared.wait_filled(first + layer, first)
            self.hold.wait(10)
            window = self.shared.window.view[(first + layer) % 2 * half :]
            if window[: cached * TOKEN] != layer_kv(tokens, 0, cached, layer):
                self.faults.append(f"wrong cached KV in layer {layer} of {cached} + {new}")
            window[cached * TOKEN : (cached + new) * TOKEN] = layer_kv(tokens, cached, cached + new, layer)
            self.shared.control.set_computed(first + layer + 1)


class Node:
    """An agent, its engine, and what it told the scheduler."""

    def __init__(self, agent: Agent, address: str) -> None:
        self.agent, self.address = agent, address
        self.said: list[Any] = []
        self.engine: Any = None

    def lost(self) -> list[bytes]:
        """The blocks that it has named as lost."""
        return [m.key for m in self.said if isinstance(m, wire.BlockLost)]

    async def wait(self, kind: type, grant: int | None = None, count: int = 1) -> Any:
        """The last of `count` messages of a kind."""
        for _ in range(2000):
            found = [m for m in self.said if isinstance(m, kind) and grant in (None, getattr(m, "grant", None))]
            if len(found) >= count:
                return found[-1]
            await asyncio.sleep(0.005)
        faults = self.engine.faults if self.engine else []
        raise AssertionError(f"no {kind.__name__} came: {self.said} {faults}")


class Cluster:
    """p0, d0 and a third node over one store, and the script of a request."""

    def __init__(self, p: Node, d: Node, relay: Node, store: Store, folder: Path) -> None:
        self.p, self.d, self.relay, self.store, self.folder = p, d, relay, store, folder
        self.grant = 0

    async def put(self, tokens: list[int], blocks: int) -> None:
        for block, key in enumerate(chain_keys(ROOT, pack_tokens(tokens), B)[:blocks]):
            await self.store.write(key, memoryview(block_kv(tokens, block)))

    def open(
        self, tokens: list[int], max_tokens: int, hit: int, by_prefill: list[int], slots_at: int = 0,
        by_relay: Sequence[int] = (),
    ) -> int:  # fmt: skip
        """Assign a request whose first `hit` blocks are cached, some read by the prefill node or by the third one."""
        self.grant += 1
        keys = chain_keys(ROOT, pack_tokens(tokens), B)
        slots = list(range(slots_at, slots_at + -(-(len(tokens) + max_tokens) // B)))
        p_slots = [40 - i for i in range(len(by_prefill))]
        self.d.agent.receive(
            wire.OpenDecode(
                self.grant, EngineId("d0/0"), self.p.address, slots,
                [wire.ReadItem(slots[b], keys[b]) for b in range(hit) if b not in [*by_prefill, *by_relay]], [],
                [(slots[b], s) for b, s in zip(by_prefill, p_slots, strict=True)],
            )
        )  # fmt: skip
        self.p.agent.receive(
            wire.OpenPrefill(
                self.grant, EngineId("p0/0"), self.d.address, p_slots, by_prefill,
                [wire.ReadItem(s, keys[b]) for b, s in zip(by_prefill, p_slots, strict=True)], slots,
            )
        )  # fmt: skip
        if by_relay:
            reads = [wire.ReadItem(20 + i, keys[b]) for i, b in enumerate(by_relay)]
            self.relay.agent.receive(wire.OpenRelay(self.grant, [r.slot for r in reads], reads))
        return self.grant

    async def fetch(self, grant: int, by_relay: Sequence[int], slots_at: int = 0) -> None:
        """The decode node gets what the third node has read, which then is out."""
        await self.relay.wait(wire.ReadsFinished, grant)
        pairs = [(slots_at + b, 20 + i) for i, b in enumerate(by_relay)]
        self.d.agent.receive(wire.StartFetch(grant, self.relay.address, pairs))
        await self.d.wait(wire.FetchFinished, grant)
        self.relay.agent.receive(wire.Release(grant))
        await self.relay.wait(wire.Released, grant)

    def start_prefill(self, grant: int, tokens: list[int], hit: int, max_tokens: int) -> None:
        args = (EngineId("p0/0"), RequestId("r"), pack_tokens(tokens), hit * B, max_tokens, Sampling(), "ipc:///none")
        self.p.agent.receive(wire.StartPrefill(grant, *args))

    async def serve(
        self, tokens: list[int], max_tokens: int, hit: int, by_prefill: list[int], slots_at: int = 0,
        by_relay: Sequence[int] = (),
    ) -> int:  # fmt: skip
        """A whole request; returns its grant when all nodes have released it."""
        grant = self.open(tokens, max_tokens, hit, by_prefill, slots_at, by_relay)
        slots = list(range(slots_at, slots_at + -(-(len(tokens) + max_tokens) // B)))
        keys = chain_keys(ROOT, pack_tokens(tokens), B)
        await self.d.wait(wire.ReadsFinished, grant)
        if by_prefill:
            await self.p.wait(wire.ReadsFinished, grant)
            self.d.agent.receive(wire.StartPull(grant))
        if by_relay:
            await self.fetch(grant, by_relay, slots_at)
        self.start_prefill(grant, tokens, hit, max_tokens)
        await self.p.wait(wire.PrefillFinished, grant)
        items = [wire.PersistItem(slots[b], keys[b], keys[b - 1] if b else b"") for b in range(hit, len(keys))]
        self.d.agent.receive(wire.Persist(grant, items))
        if by_prefill:
            await self.d.wait(wire.CopyFinished, grant)
        self.p.agent.receive(wire.Release(grant))
        args = (RequestId("r"), pack_tokens(tokens), 199, max_tokens, Sampling(), slots, keys[-1] if keys else ROOT)
        self.d.agent.receive(wire.StartDecode(grant, EngineId("d0/0"), *args, "ipc:///none"))
        await self.d.wait(wire.DecodeFinished, grant)
        self.d.agent.receive(wire.Release(grant))
        await self.released(grant)
        return grant

    async def released(self, grant: int) -> None:
        await self.p.wait(wire.Released, grant)
        await self.d.wait(wire.Released, grant)

    async def attach(self, node: Node, engine: FakeEngine) -> FakeEngine:
        joined = sum(isinstance(m, wire.EngineJoined) for m in node.said)
        node.engine = engine
        engine.start()
        await node.wait(wire.EngineJoined, count=joined + 1)
        return engine

    async def detach(self, node: Node) -> None:
        lost = sum(isinstance(m, wire.EngineLost) for m in node.said)
        node.engine.left.set()
        await node.wait(wire.EngineLost, count=lost + 1)
        await asyncio.to_thread(node.engine.join, 5)

    def path(self, node: str) -> Path:
        return self.folder / f"agent-{node}.sock"


@asynccontextmanager
async def cluster(folder: Path, transport: str = "shm", store: Store | None = None) -> AsyncIterator[Cluster]:
    store = store or MemoryStore(LAYOUT)
    limits = {"transfer_deadline_s": 3.0, "read_deadline_s": 3.0}
    overrides: dict[str, dict[str, object]] = {
        "storage": {"arena": str(48 * SIZE), "write_share": 0.25},
        "network": {"run_dir": str(folder)},
        "cluster": {"engines_per_node": 2},
    }
    config = load_config(None, {**overrides, "limits": limits})
    nodes, tasks, transports = [], [], []
    for name, role in (("p0", Role.PREFILL), ("d0", Role.DECODE), ("p1", Role.PREFILL)):
        nics, said = NicPair(None), []
        end = open_transport(transport, nics=nics, deadline_s=3)
        await end.start()
        agent = Agent(config, SPEC, NodeStats(NodeId(name), role), store, end, nics, said.append)
        node = Node(agent, end.address)
        node.said = said
        nodes.append(node)
        transports.append(end)
        tasks.append(asyncio.create_task(agent.engines.run()))
    made = Cluster(*nodes, store, folder)
    await made.attach(made.p, FakePrefill(made.path("p0"), "p0/0"))
    await made.attach(made.d, FakeDecode(made.path("d0"), "d0/0"))
    try:
        yield made
        assert made.p.engine.faults == made.d.engine.faults == []
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node, end in zip(nodes, transports, strict=True):
            await end.close()
            await node.agent.close()
            if node.engine:
                await asyncio.to_thread(node.engine.join, 5)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


def random_tokens(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(150) for _ in range(count)]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_any_plan_brings_the_right_bytes_to_window_and_arena(tmp_path: Path, transport: str) -> None:
    async def test() -> None:
        async with cluster(tmp_path, transport) as c:
            rng = random.Random(1)
            for case in range(6):
                tokens = random_tokens(case, 8 * B + 3)
                hit = rng.choice([1, 5, 8])
                share = [list(range(hit)), [], [b for b in range(hit) if rng.random() < 0.5]][case % 3]
                await c.put(tokens, hit)
                assert isinstance(c.p.engine, FakePrefill)
                c.p.engine.chunk_blocks = [1, 1000, 2, 1000, 2, 1][case]  # later chunks fetch the earlier ones' KV
                read = (c.p.agent.stats.read_bytes, c.d.agent.stats.read_bytes)
                grant = await c.serve(tokens, 6, hit, share)
                assert c.p.agent.stats.read_bytes - read[0] == len(share) * SIZE
                assert c.d.agent.stats.read_bytes - read[1] == (hit - len(share)) * SIZE
                await c.d.wait(wire.BlockWritten, count=sum(isinstance(m, wire.BlockHeld) for m in c.d.said))
                full = [*tokens, 199, *range(200, 205)]
                keys = chain_keys(ROOT, pack_tokens(full[:-1]), B)
                for _ in range(200):
                    if all([await c.store.contains(key) for key in keys]):
                        break
                    await asyncio.sleep(0.01)
                out = memoryview(bytearray(SIZE))
                for block, key in enumerate(keys):  # prompt and generated: all durable, all right
                    await c.store.read(key, out)
                    assert bytes(out) == block_kv(full, block), (grant, block)
            assert c.d.agent.stats.writes_skipped == 0

    run(test)


def test_written_bytes_and_holds_are_counted_exactly(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens = random_tokens(1, 2 * B + 1)
            await c.put(tokens, 1)
            await c.serve(tokens, 2 * B, 1, [])
            await c.d.wait(wire.BlockWritten, count=3)  # one of the prompt, two generated
            assert c.d.agent.stats.written_bytes == 3 * SIZE
            assert sum(isinstance(m, wire.BlockHeld) for m in c.d.said) == 2
            assert c.d.agent.stats.write_queue_blocks == 0

    run(test)


def test_a_full_store_fails_no_request_and_is_counted(tmp_path: Path) -> None:
    async def test() -> None:
        store = FaultyStore(MemoryStore(LAYOUT), random.Random(0), write_error_rate=1.0)
        async with cluster(tmp_path, store=store) as c:
            await c.serve(random_tokens(2, 3 * B), 2, 0, [])
            await c.d.wait(wire.BlockWritten, count=3)
            assert not any(m.durable for m in c.d.said if isinstance(m, wire.BlockWritten))
            assert c.d.agent.stats.writes_skipped == 3
            await c.serve(random_tokens(3, 3 * B), 2, 0, [])

    run(test)


@pytest.mark.parametrize("by_prefill", [[0, 1, 2], []])
def test_missing_and_corrupt_blocks_are_all_named_and_the_retry_works(tmp_path: Path, by_prefill: list[int]) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens = random_tokens(4, 3 * B + 1)
            await c.put(tokens, 3)
            assert isinstance(c.store, MemoryStore)
            keys = chain_keys(ROOT, pack_tokens(tokens), B)
            c.store.objects[keys[0]] = c.store.objects[keys[0]][:-1] + b"\0"
            del c.store.objects[keys[2]]
            grant = c.open(tokens, 2, 3, by_prefill)
            node = c.p if by_prefill else c.d
            failed = await node.wait(wire.StepFailed, grant)
            assert sorted(node.lost()) == sorted([keys[0], keys[2]])
            assert failed.cause in ("corrupt block", "missing block")
            for n in (c.p, c.d):
                n.agent.receive(wire.Release(grant))
            await c.released(grant)
            assert keys[0] not in c.store.objects
            await c.serve(tokens, 2, 0, [])  # recomputed; what was missing is written anew
            await c.d.wait(wire.BlockWritten, count=3)
            assert set(keys) <= set(c.store.objects)

    run(test)


class HangingStore(StoreWrapper):
    """Reads wait for `gate`."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(LAYOUT))
        self.gate = asyncio.Event()

    async def read(self, key: bytes, into: memoryview) -> None:
        await self.gate.wait()
        await self.inner.read(key, into)


def test_a_release_in_mid_read_waits_for_the_slot_and_gives_up_the_rest(tmp_path: Path) -> None:
    async def test() -> None:
        store = HangingStore()
        async with cluster(tmp_path, store=store) as c:
            tokens = random_tokens(5, 9 * B)
            await c.put(tokens, 8)
            grant = c.open(tokens, 2, 8, [])
            await asyncio.sleep(0.02)
            for node in (c.p, c.d):
                node.agent.receive(wire.Release(grant))
            await c.p.wait(wire.Released, grant)
            assert c.d.agent.stats.read_queue_blocks == 4, "those that run; the others gave up their places"
            assert not any(isinstance(m, wire.Released) for m in c.d.said)
            store.gate.set()
            await c.d.wait(wire.Released, grant)
            assert not any(isinstance(m, wire.StepFailed) for m in c.d.said)
            await c.serve(tokens, 2, 8, [0, 3])

    run(test)


def test_reports_agree_with_the_messages_around_them_at_any_moment(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens = random_tokens(6, 9 * B)
            await c.put(tokens, 8)
            agent, said = c.d.agent, c.d.said
            c.open(tokens, 2, 8, [0, 3])
            reports = []
            while not any(isinstance(m, wire.ReadsFinished) for m in said):
                told = sum(m.blocks for m in said if isinstance(m, wire.ReadsAdvanced))
                reports.append((agent.report().reads_left, 6 - told))
                await asyncio.sleep(0)  # every turn of the event loop
            assert reports[0] == (6, 6), "also before the first read was queued"
            assert [left for left, _ in reports] == [expected for _, expected in reports]
            assert agent.report().reads_left == 0

    run(test)


def test_a_batch_larger_than_the_window_fails_its_attempt_only(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            long = random_tokens(13, 17 * B)  # the window holds 16 blocks of a layer
            grant = c.open(long, 2, 0, [])
            await c.d.wait(wire.ReadsFinished, grant)
            c.start_prefill(grant, long, 0, 2)
            await c.p.wait(wire.StepFailed, grant)
            for node in (c.p, c.d):
                node.agent.receive(wire.Release(grant))
            await c.released(grant)
            await c.serve(random_tokens(14, 16 * B), 2, 0, [])

    run(test)


def test_a_lost_peer_fails_the_attempt_and_the_engine_serves_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens = random_tokens(6, 3 * B)
            grant = c.open(tokens, 2, 0, [])
            await c.d.wait(wire.ReadsFinished, grant)
            c.d.agent.arena.revoke_all()  # the decode node forgets: pushes are refused from now on
            c.start_prefill(grant, tokens, 0, 2)
            failed = await c.p.wait(wire.StepFailed, grant)
            assert failed.cause == "transfer failed"
            for node in (c.p, c.d):
                node.agent.receive(wire.Release(grant))
            await c.released(grant)
            assert not any(isinstance(m, wire.PrefillFinished) for m in c.p.said)
            await c.serve(tokens, 2, 0, [])

    run(test)


def test_an_engine_that_dies_in_mid_batch_lets_a_waiting_release_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens = random_tokens(7, 3 * B)
            engine = c.p.engine
            assert isinstance(engine, FakePrefill)
            engine.die_in_layer = 1
            engine.hold.clear()
            grant = c.open(tokens, 2, 0, [])
            c.start_prefill(grant, tokens, 0, 2)
            await c.p.wait(wire.PrefillStarted, grant)
            c.p.agent.receive(wire.Release(grant))
            await asyncio.sleep(0.05)
            assert not any(isinstance(m, wire.Released) for m in c.p.said), "the batch still runs"
            engine.hold.set()
            await c.p.wait(wire.EngineLost)
            await c.p.wait(wire.Released, grant)
            assert engine.faults == ["RuntimeError('dies')"]
            await c.attach(c.p, FakePrefill(c.path("p0"), "p0/0"))
            c.d.agent.receive(wire.Release(grant))
            await c.d.wait(wire.Released, grant)
            await c.serve(tokens, 2, 0, [])

    run(test)


def test_a_restarted_engine_gets_nothing_of_its_predecessors_grants(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens = random_tokens(8, 3 * B)
            grant = c.open(tokens, 2, 0, [])
            await c.detach(c.p)
            await c.attach(c.p, FakePrefill(c.path("p0"), "p0/0"))
            c.start_prefill(grant, tokens, 0, 2)  # sent before the scheduler heard of the loss
            await asyncio.sleep(0.1)
            assert isinstance(c.p.engine, FakePrefill)
            assert c.p.engine.next_layer == 0, "it computed nothing"
            assert sum(isinstance(m, wire.EngineLost) for m in c.p.said) == 1
            for node in (c.p, c.d):
                node.agent.receive(wire.Release(grant))
            await c.released(grant)

    run(test)


def test_a_reset_ends_everything_and_drops_write_backs(tmp_path: Path) -> None:
    async def test() -> None:
        store = HangingStore()
        async with cluster(tmp_path, store=store) as c:
            tokens = random_tokens(9, 3 * B)
            await c.put(tokens, 2)
            grant = c.open(tokens, 2, 2, [1])
            child = chain_keys(ROOT, pack_tokens(tokens), B)[2]
            c.d.agent.receive(wire.Persist(grant, [wire.PersistItem(2, child, b"\7" * 16)]))  # waits for its parent
            assert c.d.agent.stats.write_queue_blocks == 1
            store.gate.set()
            await asyncio.gather(c.p.agent.reset(), c.d.agent.reset())
            assert c.d.agent.stats.write_queue_blocks == 0
            assert c.d.agent.report().grants_seen == 0
            assert not c.d.agent.arena.authorize(grant, [c.d.agent.arena.block_range(0)])
            assert not await store.contains(child)
            await c.serve(tokens, 2, 2, [0])

    run(test)


def test_reads_into_a_slot_wait_for_late_transfers_of_its_last_grant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens = random_tokens(15, 2 * B)
            await c.put(tokens, 2)
            last = await c.serve(tokens, 2, 1, [])
            gate, asked = asyncio.Event(), []

            async def drained(name: str, grant: int) -> None:
                asked.append((name, grant))
                await gate.wait()

            monkeypatch.setattr(c.d.agent._transport, "drained", drained)
            grant = c.open(tokens, 2, 1, [])
            await asyncio.sleep(0.05)
            assert asked == [("arena", last)]
            assert not any(isinstance(m, wire.ReadsFinished) and m.grant == grant for m in c.d.said)
            gate.set()
            await c.d.wait(wire.ReadsFinished, grant)

    run(test)


def test_messages_for_grants_that_are_gone_or_wrong_do_no_harm(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens, key = random_tokens(10, B), b"\1" * 16
            c.start_prefill(77, tokens, 0, 2)
            c.d.agent.receive(wire.StartPull(77))
            c.d.agent.receive(wire.StartFetch(77, "", [(0, 0)]))
            c.d.agent.receive(wire.Persist(77, [wire.PersistItem(0, key, b"")]))
            assert not (await c.d.wait(wire.BlockWritten)).durable
            c.d.agent.receive(wire.Release(77))
            await c.d.wait(wire.Released, 77)
            c.d.agent.receive(wire.OpenDecode(78, EngineId("d0/0"), "", [999], [], [], []))
            await c.d.wait(wire.StepFailed, 78)
            c.d.agent.receive(wire.NodeAccepted("not for on_message"))
            await c.serve(tokens, 2, 0, [])

    run(test)


def test_a_retained_block_is_fetched_from_the_arena_that_holds_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens = random_tokens(11, 2 * B)
            held = await c.serve(tokens, 2, 0, [])  # blocks 0 and 1 lie in slots 0 and 1, under this grant
            retained = [wire.RetainedItem(20, c.d.address, 0, held)]
            c.d.agent.receive(wire.OpenDecode(50, EngineId("d0/0"), c.p.address, [20], [], retained, []))
            assert (await c.d.wait(wire.ReadsFinished, 50)).retained_bytes == SIZE
            assert bytes(c.d.agent.arena.slot(20)) == block_kv(tokens, 0)
            retained = [wire.RetainedItem(5, c.d.address, 1, held)]
            c.p.agent.receive(wire.OpenDecode(51, EngineId("d0/0"), c.d.address, [5], [], retained, []))
            await c.p.wait(wire.ReadsFinished, 51)  # from the other node
            assert bytes(c.p.agent.arena.slot(5)) == block_kv(tokens, 1)
            c.p.agent.receive(wire.OpenDecode(52, EngineId("d0/0"), c.d.address, [6], [],
                                              [wire.RetainedItem(6, c.d.address, 1, held + 999)], []))  # fmt: skip
            assert (await c.p.wait(wire.StepFailed, 52)).cause == "transfer failed"

    run(test)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("by_relay", [[1, 3, 4], [0, 1, 2, 3, 4]])
def test_what_a_third_node_reads_comes_to_window_and_arena(
    tmp_path: Path, transport: str, by_relay: list[int]
) -> None:  # fmt: skip
    async def test() -> None:
        async with cluster(tmp_path, transport) as c:
            tokens = random_tokens(20, 6 * B)
            await c.put(tokens, 5)
            c.p.engine.chunk_blocks = 1
            await c.serve(tokens, 6, 5, [b for b in (0,) if b not in by_relay], slots_at=7, by_relay=by_relay)
            assert c.relay.agent.stats.read_bytes == len(by_relay) * SIZE
            assert c.d.agent.stats.read_bytes + c.p.agent.stats.read_bytes == (5 - len(by_relay)) * SIZE
            assert sum(m.blocks for m in c.relay.said if isinstance(m, wire.ReadsAdvanced)) == len(by_relay)
            report = c.relay.agent.report()
            assert (report.grants_seen, report.reads_left) == (1, 0)

    run(test)


def test_a_third_node_names_bad_blocks_and_gives_up_its_reads(tmp_path: Path) -> None:
    async def test() -> None:
        store = HangingStore()
        async with cluster(tmp_path, store=store) as c:
            tokens = random_tokens(21, 6 * B)
            await c.put(tokens, 5)
            released = c.open(tokens, 2, 5, [], by_relay=[1, 2])
            await asyncio.sleep(0.02)
            c.relay.agent.receive(wire.Release(released))
            await asyncio.sleep(0.02)
            assert not any(isinstance(m, wire.Released) for m in c.relay.said), "the store still writes to its slots"
            store.gate.set()
            await c.relay.wait(wire.Released, released)
            keys = chain_keys(ROOT, pack_tokens(tokens), B)
            await store.inner.delete(keys[2])
            failed = c.open(tokens, 2, 5, [], slots_at=10, by_relay=[1, 2])
            await c.relay.wait(wire.StepFailed, failed)
            assert c.relay.lost() == [keys[2]]

    run(test)


@pytest.mark.parametrize("lost", [True, False])
def test_a_fetch_from_a_third_node_that_is_gone_or_out_fails_the_attempt(tmp_path: Path, lost: bool) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens = random_tokens(22, 6 * B)
            await c.put(tokens, 5)
            grant = c.open(tokens, 2, 5, [], by_relay=[1, 2])
            await c.relay.wait(wire.ReadsFinished, grant)
            await (c.relay.agent._transport.close() if lost else c.relay.agent.reset())
            c.d.agent.receive(wire.StartFetch(grant, c.relay.address, [(1, 20), (2, 21)]))
            assert (await c.d.wait(wire.StepFailed, grant)).cause == "transfer failed"
            assert not any(isinstance(m, wire.FetchFinished) for m in c.d.said)
            for node in (c.p, c.d):
                node.agent.receive(wire.Release(grant))
            await c.released(grant)

    run(test)


def test_a_fetch_waits_for_late_transfers_into_its_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            tokens = random_tokens(23, 6 * B)
            await c.put(tokens, 5)
            await c.serve(tokens, 2, 5, [])
            gate, drained = asyncio.Event(), c.d.agent._transport.drained

            async def late(name: str, grant: int) -> None:
                await gate.wait()
                await drained(name, grant)

            monkeypatch.setattr(c.d.agent._transport, "drained", late)
            grant = c.open(tokens, 2, 5, [], by_relay=[1, 2])
            fetch = asyncio.create_task(c.fetch(grant, [1, 2]))
            await c.relay.wait(wire.ReadsFinished, grant)
            await asyncio.sleep(0.05)
            assert not any(isinstance(m, wire.FetchFinished) for m in c.d.said)
            gate.set()
            await fetch

    run(test)


def test_engines_that_do_not_fit_are_refused_in_plain_words(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            other = BlockLayout(model="other", n_layers=3, block_tokens=B, token_bytes=16, dtype="float32")
            cases = [
                (FakeDecode(c.path("p0"), "p0/1"), "this is a prefill node"),
                (FakePrefill(c.path("p0"), "p1/0"), "no engine of this node"),
                (FakePrefill(c.path("p0"), "p0/1", other), "same model"),
            ]
            for engine, words in cases:
                with pytest.raises(ConfigError, match=words):
                    await asyncio.to_thread(AgentClient, engine.path, engine.hello())
            huge = engine_wire.EngineHello(wire.PROTOCOL_VERSION, EngineId("p0/1"), Role.PREFILL, SPEC, 9, 1 << 50, 1.0)
            with pytest.raises(ConfigError, match="shared memory"):
                await asyncio.to_thread(AgentClient, c.path("p0"), huge)

    run(test)


def test_engines_come_and_go_without_leaving_descriptors(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                await c.detach(c.p)
                await c.attach(c.p, FakePrefill(c.path("p0"), "p0/0"))
            await asyncio.sleep(0.05)
            assert len(os.listdir("/proc/self/fd")) <= before

    run(test)


def test_an_engine_that_breaks_the_protocol_is_cut_off_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as c:
            c.p.engine.client.send(engine_wire.StreamBatch(0, [engine_wire.StreamItem(999, 0, 0, 0, 1)]))
            await c.p.wait(wire.EngineLost)
            await asyncio.to_thread(c.p.engine.join, 5)
            await c.attach(c.p, FakePrefill(c.path("p0"), "p0/0"))
            await c.serve(random_tokens(12, 2 * B), 2, 0, [])

    run(test)


@pytest.mark.parametrize("layers", [1, 4, 32])
def test_the_engines_kv_memory_does_not_grow_with_the_layers(tmp_path: Path, layers: int) -> None:
    from dualpath.node.arena import Arena
    from dualpath.node.stream import LayerStream

    async def test() -> None:
        layout = BlockLayout(model="m", n_layers=layers, block_tokens=B, token_bytes=16, dtype="float32")
        end, arena = open_transport("shm"), Arena(layout, 2 * layout.block_bytes)
        stream = LayerStream("p0/0", layout, 64, 1, arena, end, NicPair(None))
        assert stream.window.size_bytes == 2 * 64 * 16, "two layers of 64 tokens, however many layers there are"
        stream.close()
        arena.close()

    run(test)
