"""The transports against the contract, and what is particular to each."""

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dualpath.core.errors import ConfigError, TransferError
from dualpath.testing.transport import GRANT, MIB, Node, TransportTests, local
from dualpath.transport.base import Lane, Range, RemoteRanges, Transport
from dualpath.transport.nic import NicPair
from dualpath.transport.open import open_transport
from dualpath.transport.shm import ShmTransport
from dualpath.transport.tcp import TcpTransport

KEY = b"the secret of a cluster of tests"


class TestTcp(TransportTests):
    def make_transport(
        self, folder: Path, *, nics: NicPair | None = None, deadline_s: float = 20, address: str = ""
    ) -> Transport:
        return TcpTransport(port=int(address.rpartition(":")[2] or 0), nics=nics, deadline_s=deadline_s)


class TestShm(TransportTests):
    def make_transport(
        self, folder: Path, *, nics: NicPair | None = None, deadline_s: float = 20, address: str = ""
    ) -> Transport:
        return ShmTransport(folder, nics=nics, deadline_s=deadline_s)


class TestTcpWithKey(TestTcp):
    def make_transport(
        self, folder: Path, *, nics: NicPair | None = None, deadline_s: float = 20, address: str = ""
    ) -> Transport:
        port = int(address.rpartition(":")[2] or 0)
        return TcpTransport(port=port, nics=nics, deadline_s=deadline_s, key=KEY)


# A peer in a process of its own: prints its address, serves until it is killed.
PEER = """
import asyncio, sys
from pathlib import Path
from dualpath.testing.transport import MIB, Node
from dualpath.transport.nic import NicPair
from dualpath.transport.open import open_transport

async def main():
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    peer = Node(open_transport(sys.argv[1], socket_dir=folder, nics=NicPair(4 * MIB)), 8 * MIB, seed=1)
    await peer.transport.start()
    print(peer.transport.address, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["tcp", "shm", "auto"])
@pytest.mark.parametrize("operation", ["fetch", "push"])
def test_killed_peer_fails_its_transfers_at_once(kind: str, operation: str) -> None:
    peer = subprocess.Popen([sys.executable, "-c", PEER, kind], stdout=subprocess.PIPE, text=True)
    try:
        assert peer.stdout is not None
        address = peer.stdout.readline().strip()

        async def run() -> None:
            caller = Node(open_transport(kind), 8 * MIB, seed=2)
            await caller.transport.start()
            piece = Range(0, 8 * MIB)
            remote = RemoteRanges(address, "arena", GRANT, [piece])
            if operation == "fetch":
                transfer = caller.transport.fetch(remote, local(piece), lane=Lane.BLOCKS)
            else:
                transfer = caller.transport.push(local(piece), remote, lane=Lane.BLOCKS)
            task = asyncio.create_task(transfer)
            await asyncio.sleep(0.3)
            assert not task.done()
            os.kill(peer.pid, signal.SIGKILL)
            began = time.monotonic()
            with pytest.raises(TransferError):
                await task
            assert time.monotonic() - began < 3
            await caller.close()

        asyncio.run(run())
    finally:
        peer.kill()
        peer.communicate()


def test_shm_endpoint_of_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    peer = subprocess.Popen([sys.executable, "-c", PEER, "shm", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert peer.stdout is not None
        peer.stdout.readline()

        async def start() -> None:
            endpoint = ShmTransport(tmp_path)
            await endpoint.start()
            await endpoint.close()

        with pytest.raises(ConfigError, match="directory of its own"):
            asyncio.run(start())
        peer.kill()
        peer.wait()
        asyncio.run(start())
        assert list(tmp_path.iterdir()) == []
    finally:
        peer.kill()
        peer.communicate()


def test_shm_forgets_the_memory_of_a_peer_that_has_gone(tmp_path: Path) -> None:
    async def run() -> None:
        caller, server = (Node(ShmTransport(), MIB, seed=index) for index in range(2))
        await caller.transport.start()
        await server.transport.start()
        piece = Range(0, 4096)
        before = _mapped_memfds()
        await caller.transport.fetch(server.remote(piece), local(piece), lane=Lane.LAYERS)
        assert _mapped_memfds() == before + 1
        await server.transport.close()
        await asyncio.sleep(0.05)
        assert _mapped_memfds() == before
        await caller.close()
        await server.close()

    asyncio.run(run())


def _mapped_memfds() -> int:
    gc.collect()  # earlier tests' failed transfers hold views in their tracebacks
    return Path("/proc/self/maps").read_text().count("memfd:dualpath")


def test_shm_refuses_a_region_without_memfd() -> None:
    async def run() -> None:
        caller, server = (Node(ShmTransport(), MIB, seed=index) for index in range(2))
        await caller.transport.start()
        await server.transport.start()
        server.transport.register("private", memoryview(bytearray(10)), authorize=server.authorize)
        with pytest.raises(TransferError, match="memfd"):
            remote = server.remote(Range(0, 10), region="private")
            await caller.transport.fetch(remote, local(Range(0, 10)), lane=Lane.LAYERS)
        await caller.close()
        await server.close()

    asyncio.run(run())


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_tcp_over_ipv6() -> None:
    async def run() -> None:
        caller, server = (Node(TcpTransport("::1"), MIB, seed=index) for index in range(2))
        await caller.transport.start()
        await server.transport.start()
        await caller.transport.fetch(server.remote(Range(0, MIB)), local(Range(0, MIB)), lane=Lane.LAYERS)
        assert bytes(caller.memory.view) == bytes(server.memory.view)
        await caller.close()
        await server.close()

    asyncio.run(run())


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example", "224.0.0.1"])
def test_tcp_refuses_other_than_loopback(host: str) -> None:
    with pytest.raises(ConfigError):
        TcpTransport(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example", "224.0.0.1"])
def test_tcp_refuses_addresses_that_peers_cannot_use_even_with_a_key(host: str) -> None:
    with pytest.raises(ConfigError):
        TcpTransport(host, key=KEY)


def test_tcp_off_loopback_names_the_mend() -> None:
    for kind in ("tcp", "auto"):
        with pytest.raises(ConfigError, match=r"network\.key_file"):
            open_transport(kind, host="192.0.2.1")


def test_tcp_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = TcpTransport(port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="port"):
            asyncio.run(endpoint.start())


def test_addresses_of_the_other_kind_are_transfer_errors() -> None:
    async def run() -> None:
        tcp, shm = Node(TcpTransport(), MIB, seed=1), Node(ShmTransport(), MIB, seed=2)
        await tcp.transport.start()
        await shm.transport.start()
        for caller, server in [(tcp, shm), (shm, tcp)]:
            with pytest.raises(TransferError, match="address"):
                await caller.transport.fetch(server.remote(Range(0, 10)), local(Range(0, 10)), lane=Lane.LAYERS)
        await tcp.close()
        await shm.close()

    asyncio.run(run())


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError):
        open_transport("pigeon")
