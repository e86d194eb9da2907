"""The discovered transport against the contract, however it finds its peers; and its choices."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dualpath.core.errors import ConfigError, GrantExpired, TransferError
from dualpath.testing.transport import MIB, Node, TransportTests, local
from dualpath.transport import auto, endpoint, ways
from dualpath.transport.auto import AutoTransport, rdma_ports
from dualpath.transport.base import Lane, Range, Transport
from dualpath.transport.nic import NicPair
from dualpath.transport.open import open_transport
from dualpath.transport.shm import ShmTransport
from dualpath.transport.tcp import TcpTransport
from dualpath.transport.ways import Way, Ways, host_identity, join_address, ways_to

PIECE = Range(0, 5000)
KEY = bytes(range(32))


class TestOnOneHost(TransportTests):
    def make_transport(
        self, folder: Path, *, nics: NicPair | None = None, deadline_s: float = 20, address: str = ""
    ) -> Transport:
        port = int(address.rpartition(":")[2] or 0)
        return open_transport(port=port, socket_dir=folder, nics=nics, deadline_s=deadline_s, key=KEY)


class TestBetweenHosts(TestOnOneHost):
    """Every folder plays a host of its own."""

    @pytest.fixture(autouse=True)
    def hosts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def make_transport(
        self, folder: Path, *, nics: NicPair | None = None, deadline_s: float = 20, address: str = ""
    ) -> Transport:
        self.monkeypatch.setattr(auto, "host_identity", lambda: f"host-{folder.name}")
        return super().make_transport(folder, nics=nics, deadline_s=deadline_s, address=address)


class TestBrokenSharedMemory(TestOnOneHost):
    """It is the best and cannot connect, so every first transfer falls back."""

    @pytest.fixture(autouse=True)
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        break_shm(monkeypatch)


def break_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: ShmTransport, peer: str, lane: Lane) -> None:
        raise ConnectionRefusedError("broken for this test")

    monkeypatch.setattr(ShmTransport, "_connect", refuse)


def with_pair(test: Callable[[Node, Node], Awaitable[None]], **settings: Any) -> None:
    """Run a test between two auto endpoints."""

    async def run() -> None:
        caller, server = (Node(AutoTransport(key=KEY, **settings), MIB, seed=seed) for seed in (1, 2))
        await caller.transport.start()
        await server.transport.start()
        try:
            async with asyncio.timeout(30):
                await test(caller, server)
        finally:
            await caller.close()
            await server.close()

    asyncio.run(run())


async def fetch(caller: Node, server: Node, **remote: int) -> None:
    await caller.transport.fetch(server.remote(PIECE, **remote), local(PIECE), lane=Lane.LAYERS)


def test_shared_memory_on_one_host_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dualpath")

    async def test(caller: Node, server: Node) -> None:
        for _ in range(3):
            await fetch(caller, server)
        await asyncio.sleep(0.05)
        for node in (caller, server):
            assert node.transport.kind_bytes() == {"shm": 3 * PIECE.length, "tcp": 0}
            assert node.transport.fallbacks() == {"shm": 0, "tcp": 0}

    with_pair(test)
    said = [record.getMessage() for record in caplog.records if "go by" in record.getMessage()]
    assert len(said) == 1 and "go by shm: it is on this host" in said[0]


def test_fallback_is_warned_of_counted_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect = ShmTransport._connect
    break_shm(monkeypatch)

    async def test(caller: Node, server: Node) -> None:
        for _ in range(3):
            await fetch(caller, server)
        assert caller.transport.fallbacks() == {"shm": 1, "tcp": 0}
        assert caller.transport.kind_bytes() == {"shm": 0, "tcp": 3 * PIECE.length}
        monkeypatch.setattr(ShmTransport, "_connect", connect)
        await fetch(caller, server)
        assert caller.transport.kind_bytes()["shm"] == 0, "not yet tried again"
        later = ways.monotonic() + ways.RETRY_S
        monkeypatch.setattr(ways, "monotonic", lambda: later)
        for _ in range(2):
            await fetch(caller, server)
        assert caller.transport.kind_bytes() == {"shm": 2 * PIECE.length, "tcp": 4 * PIECE.length}
        assert caller.transport.fallbacks() == {"shm": 1, "tcp": 0}

    with_pair(test)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "as shm cannot connect" in warnings[0]


def test_a_failed_transfer_is_not_tried_by_another_way() -> None:
    async def test(caller: Node, server: Node) -> None:
        with pytest.raises(GrantExpired):
            await fetch(caller, server, grant=99)
        server.transport.unregister("arena")
        with pytest.raises(TransferError, match="arena"):
            await fetch(caller, server)
        assert caller.transport.kind_bytes() == {"shm": 0, "tcp": 0}
        assert not caller.transport._kinds["tcp"]._peers

    with_pair(test)


def test_a_peer_that_has_gone_is_no_fallback(caplog: pytest.LogCaptureFixture) -> None:
    async def test(caller: Node, server: Node) -> None:
        await server.transport.close()
        with pytest.raises(TransferError, match="tcp://"):
            await fetch(caller, server)
        assert caller.transport.fallbacks() == {"shm": 0, "tcp": 0}

    with_pair(test)
    assert not caplog.records


def test_a_way_that_does_not_answer_is_given_up_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silence(self: ShmTransport, peer: str, lane: Lane) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(ShmTransport, "_connect", silence)
    monkeypatch.setattr(endpoint, "CONNECT_S", 0.1)

    async def test(caller: Node, server: Node) -> None:
        await fetch(caller, server)
        assert caller.transport.kind_bytes() == {"shm": 0, "tcp": PIECE.length}

    with_pair(test, deadline_s=5)


@pytest.mark.parametrize("kind", [ShmTransport, partial(TcpTransport, key=KEY)], ids=["shm", "tcp"])
def test_peers_of_one_kind_are_peers_too(kind: Callable[[], Transport]) -> None:
    async def test(caller: Node, _: Node) -> None:
        single = Node(kind(), MIB, seed=3)
        await single.transport.start()
        await fetch(caller, single)
        assert caller.bytes_of(PIECE) == single.bytes_of(PIECE)
        await single.close()

    with_pair(test)


def test_without_a_key_no_port_is_opened_on_loopback() -> None:
    assert list(AutoTransport()._kinds) == ["shm"]
    with pytest.raises(ConfigError, match="key_file"):
        AutoTransport("192.0.2.1")


def test_registering_is_with_all_kinds_or_none() -> None:
    transport = AutoTransport(key=KEY)
    transport._kinds["tcp"].register("r", memoryview(bytearray(8)), authorize=lambda grant, ranges: True)
    for _ in range(2):  # the second time finds nothing left behind by the first
        with pytest.raises(Exception, match="'r' is in use"):
            transport.register("r", memoryview(bytearray(8)), authorize=lambda grant, ranges: True)
    assert "r" not in transport._kinds["shm"]._regions._regions


def test_ways_are_what_both_have_and_shared_memory_only_on_the_same_host() -> None:
    addresses = ["tcp://10.0.0.1:5", "nixl://10.0.0.1:6", "shm:/run/a,b %/transport.sock"]
    address = join_address("here", addresses)
    tcp, nixl, shm = (Way(each.partition(":")[0], each) for each in addresses)
    assert ways_to(address, "here", ["shm", "tcp", "nixl"]).best_first == [shm, nixl, tcp]
    assert ways_to(address, "there", ["shm", "tcp", "nixl"]).best_first == [nixl, tcp]
    assert ways_to(address, "there", ["shm", "tcp"]).best_first == [tcp]
    for nowhere in (address, "auto:", "auto:here", "auto:here,pigeon:loft", "", "pigeon:loft"):
        with pytest.raises(TransferError, match="address"):
            ways_to(nowhere, "there", ["shm"])


def test_only_one_transfer_tries_a_shunned_way_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(ways, "monotonic", lambda: now)
    shm, tcp = Way("shm", "shm:@a"), Way("tcp", "tcp://127.0.0.1:5")
    to_peer = Ways([tcp, shm])
    assert to_peer.to_try() == [shm, tcp]
    to_peer.shun(shm)
    assert to_peer.to_try() == [tcp, shm]
    now += ways.RETRY_S
    assert [to_peer.to_try(), to_peer.to_try()] == [[shm, tcp], [tcp, shm]]
    to_peer.welcome(shm)
    assert to_peer.to_try() == [shm, tcp]


def test_host_identity_is_the_same_in_this_process_and_tells_users_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = host_identity()
    assert host_identity() == before and "," not in before
    monkeypatch.setattr(ways.os, "getuid", lambda: 4711)
    assert host_identity() != before


def test_rdma_counts_only_behind_the_hosts_own_address_and_when_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_NETWORK_CLASS", tmp_path)
    assert rdma_ports("127.0.0.1") == []
    port = tmp_path / "lo" / "device" / "infiniband" / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("1: DOWN\n")
    assert rdma_ports("127.0.0.1") == []
    (port / "state").write_text("4: ACTIVE\n")
    assert rdma_ports("127.0.0.1") == [port]
