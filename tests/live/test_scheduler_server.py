"""The live scheduler at its socket: restarts, strangers, garbage, gateways that vanish."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from dualpath.core import wire
from dualpath.core.config_file import load_config
from dualpath.core.errors import StoreUnavailable
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.layout import BlockLayout
from dualpath.core.model import ModelSpec
from dualpath.core.report import NodeStats, Role
from dualpath.core.request import Done, FinishReason, Sampling, Submission
from dualpath.scheduler import server
from dualpath.scheduler.index import PrefixIndex
from dualpath.scheduler.main import rebuild
from dualpath.store.memory import MemoryStore

LAYOUT = BlockLayout(model="m", n_layers=2, block_tokens=4, token_bytes=8, dtype="float32")
SPEC = ModelSpec("m", "", LAYOUT, 1, 1, 1, 256, 1000, ())
ANY = wire.ToGateway | wire.ToAgent


class Peer:
    """A gateway or an agent: one DEALER."""

    def __init__(self, endpoint: str) -> None:
        self.socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    async def say(self, *messages: Any) -> None:
        for message in messages:
            await self.socket.send(message if isinstance(message, bytes) else wire.encode(message))

    async def next(self, kind: type) -> Any:
        async with asyncio.timeout(30):
            while True:
                message = wire.Decoder(ANY).decode(await self.socket.recv())
                if isinstance(message, kind):
                    return message

    async def beat_until(self, kind: type) -> None:
        """Report again and again, as an agent does, until an answer comes."""

        async def beat() -> None:
            while True:
                await self.say(wire.NodeReport(NodeStats(NodeId("d0"), Role.DECODE), [], 1))
                await asyncio.sleep(0.1)

        beating = asyncio.create_task(beat())
        try:
            await self.next(kind)
        finally:
            beating.cancel()

    async def report(self) -> Any:
        await self.say(wire.GetReport())
        return (await self.next(wire.Report)).report

    async def join(self, node: str, role: Role) -> None:
        await self.say(wire.NodeHello(wire.PROTOCOL_VERSION, NodeId(node), role, SPEC, f"shm:{node}", 32, 4, 1e6))
        await self.next(wire.NodeAccepted)
        await self.say(wire.EngineJoined(EngineId(f"{node}/0"), 64, 1000.0))


class Cluster:
    """A scheduler at `endpoint` and peers that the test makes."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/s.sock"
        self.peers: list[Peer] = []
        self.config, self.index = load_config(), PrefixIndex()
        self.start()

    def start(self) -> None:
        scheduler = server.Scheduler(self.config, SPEC, self.index)
        self.task = asyncio.create_task(scheduler.run(self.endpoint))

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def peer(self) -> Peer:
        self.peers.append(Peer(self.endpoint))
        return self.peers[-1]


def run(folder: Path, test: Callable[[Cluster], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            cluster = Cluster(folder)
            try:
                await test(cluster)
            finally:
                await cluster.stop()
                for peer in cluster.peers:
                    peer.socket.close()

    asyncio.run(bounded())


def submit(name: str) -> wire.Submit:
    return wire.Submit(Submission(RequestId(name), b"\1\0\0\0" * 5, b"r" * 16, (b"k" * 16,), 4, Sampling()), "ipc:///x")


async def joined(c: Cluster) -> tuple[Peer, Peer, Peer]:
    p, d, gateway = c.peer(), c.peer(), c.peer()
    await p.join("p0", Role.PREFILL)
    await d.join("d0", Role.DECODE)
    for _ in range(300):
        if (await gateway.report()).ready:
            return p, d, gateway
        await asyncio.sleep(0.01)
    raise AssertionError((await gateway.report()).missing)


def test_garbage_strangers_and_impossible_messages_do_no_harm(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        p, _, gateway = await joined(c)
        stranger = c.peer()
        await stranger.say(b"\xc1", wire.EngineLost(EngineId("p0/0")), wire.PrefillFinished(1, 5, 0), wire.Released(9))
        await stranger.socket.send_multipart([b"two", b"frames"])
        await p.say(wire.EngineLost(EngineId("d0/0")))  # not its engine
        await p.say(wire.BlockWritten(10**9, b"k" * 16, True), wire.ReadsAdvanced(99, 5, 5))
        await p.say(wire.NodeReport(NodeStats(NodeId("p0"), Role.PREFILL), [], 0))
        await stranger.report()
        report = await gateway.report()
        assert report.ready, report.missing

    run(tmp_path, test)


def test_a_restarted_scheduler_sends_nodes_back_to_join_and_reuses_no_grant(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        _, d, gateway = await joined(c)
        await gateway.say(submit("a"))
        first = (await d.next(wire.OpenDecode)).grant
        await c.stop()
        c.start()
        await d.beat_until(wire.Rejoin)  # a single report could still have gone to the old one's dying connection
        _, d, gateway = await joined(c)
        await gateway.say(submit("a"))
        assert (await d.next(wire.OpenDecode)).grant > first

    run(tmp_path, test)


def test_a_vanished_gateways_requests_are_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_GATEWAY_LEASE_S", 0.3)

    async def test(c: Cluster) -> None:
        p, d, gateway = await joined(c)
        await gateway.say(submit("a"))
        grant = (await d.next(wire.OpenDecode)).grant
        assert (await p.next(wire.Release)).grant == (await d.next(wire.Release)).grant == grant
        assert (await gateway.report()).running_requests == 0

    run(tmp_path, test)


def test_a_failed_step_starts_a_new_attempt_under_a_new_grant(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        p, d, gateway = await joined(c)
        await gateway.say(submit("a"))
        grant = (await d.next(wire.OpenDecode)).grant
        await d.say(wire.StepFailed(grant, "corrupt block"))
        assert (await d.next(wire.Release)).grant == (await p.next(wire.Release)).grant == grant
        assert (await d.next(wire.OpenDecode)).grant != grant
        assert (await gateway.report()).recomputes == {"corrupt block": 1}

    run(tmp_path, test)


def test_nobody_is_sent_to_read_a_lost_block(tmp_path: Path) -> None:
    keys = tuple(bytes([i]) * 16 for i in range(3))
    request = Submission(RequestId("a"), b"\1\0\0\0" * 14, b"r" * 16, keys, 4, Sampling())

    async def test(c: Cluster) -> None:
        c.index.add_durable(keys)
        p, d, gateway = await joined(c)
        await d.say(wire.BlockLost(keys[1]))
        await d.report()  # so it was heard
        await gateway.say(wire.Submit(request, "ipc:///x"))
        reads = [*(await p.next(wire.OpenPrefill)).reads, *(await d.next(wire.OpenDecode)).reads]
        assert [read.key for read in reads] == [keys[0]]

    run(tmp_path, test)


def test_a_third_node_reads_for_a_pair(tmp_path: Path) -> None:
    keys = tuple(bytes([i]) * 16 for i in range(3))
    request = Submission(RequestId("a"), b"\1\0\0\0" * 14, b"r" * 16, keys, 4, Sampling())

    async def test(c: Cluster) -> None:
        await c.stop()
        c.config = load_config(None, {"scheduling": {"read_policy": "any-node"}})
        c.index.add_durable(keys)
        c.start()
        p, d, gateway = await joined(c)
        third = c.peer()
        await third.join("d1", Role.DECODE)
        await third.report()  # so it has joined
        await gateway.say(wire.Submit(request, "ipc:///x"))
        relay, decode = await third.next(wire.OpenRelay), await d.next(wire.OpenDecode)
        grant = relay.grant
        ((slot, key),) = [(r.slot, r.key) for r in relay.reads]
        assert (relay.slots, key) == ([slot], keys[1])
        assert [(r.slot, r.key) for r in decode.reads] == [(decode.slots[2], keys[2])]
        await third.say(wire.ReadsAdvanced(grant, 1, 100), wire.ReadsFinished(grant))
        fetch = await d.next(wire.StartFetch)
        assert (fetch.grant, fetch.peer, fetch.pairs) == (grant, "shm:d1", [(decode.slots[1], slot)])
        await d.say(wire.ReadsAdvanced(grant, 1, 10), wire.ReadsFinished(grant), wire.FetchFinished(grant))
        assert (await third.next(wire.Release)).grant == grant
        await third.say(wire.Released(grant))
        await p.say(wire.ReadsAdvanced(grant, 1, 1), wire.ReadsFinished(grant))
        assert (await p.next(wire.StartPrefill)).cached_tokens == 12
        await p.say(wire.PrefillFinished(grant, 5, 0, FinishReason.STOP))
        timeline = (await gateway.next(Done)).timeline
        assert (timeline.read_bytes_prefill, timeline.read_bytes_decode, timeline.read_bytes_relay) == (1, 10, 100)
        assert 0 < timeline.dispatched_ns < timeline.decode_side_loaded_ns
        assert (await gateway.report()).decisions["read:relay"] == 1

    run(tmp_path, test)


def test_a_store_that_breaks_off_its_listing_gives_a_part_of_the_index() -> None:
    class Breaking(MemoryStore):
        async def keys(self):  # type: ignore[no-untyped-def]
            yield b"a" * 16
            raise StoreUnavailable("gone")

    index = PrefixIndex()
    asyncio.run(rebuild(index, Breaking(LAYOUT)))
    assert len(index) == 1
