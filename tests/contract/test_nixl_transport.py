"""The NIXL transport against the contract, and what is particular to it."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from dualpath.core.errors import ConfigError, TransferError
from dualpath.core.traffic import MARKS, Traffic
from dualpath.testing.transport import GRANT, MIB, Node, TransportTests, local
from dualpath.transport.base import Lane, Range, RemoteRanges, Transport
from dualpath.transport.nic import NicPair
from dualpath.transport.tcp import TcpTransport

pytest.importorskip("nixl_cu12", reason="NIXL is not installed: pip install --no-deps nixl-cu12==1.5.1")

from dualpath.transport.nixl import NixlTransport
from dualpath.transport.nixl_devices import PORTS, interface_of

KEY = b"k" * 32


class TestNixl(TransportTests):
    def make_transport(
        self, folder: Path, *, nics: NicPair | None = None, deadline_s: float = 20, address: str = ""
    ) -> Transport:
        return NixlTransport(port=int(address.rpartition(":")[2] or 0), nics=nics, deadline_s=deadline_s)


# A peer in a process of its own: prints its address, serves until it is killed.
PEER = """
import asyncio, sys
from dualpath.testing.transport import MIB, Node
from dualpath.transport.nic import NicPair
from dualpath.transport.nixl import NixlTransport

async def main():
    rate, keyed = int(sys.argv[2]) or None, {"key": sys.argv[3].encode()} if len(sys.argv) > 3 else {}
    peer = Node(NixlTransport(sys.argv[1], nics=NicPair(rate), **keyed), 8 * MIB, seed=1)
    await peer.transport.start()
    print(peer.transport.address, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
ARENA = Range(0, 8 * MIB)


def spawn(*arguments: object, before: tuple[str, ...] = ()) -> tuple[subprocess.Popen[str], str]:
    """A peer and its address."""
    command = [*before, sys.executable, "-c", PEER, *map(str, arguments)]
    peer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert peer.stdout is not None
    return peer, peer.stdout.readline().strip()


async def move(operation: str, caller: Node, address: str) -> None:
    """The whole arena of a spawned peer."""
    remote = RemoteRanges(address, "arena", GRANT, [ARENA])
    if operation == "fetch":
        await caller.transport.fetch(remote, local(ARENA), lane=Lane.BLOCKS)
    else:
        await caller.transport.push(local(ARENA), remote, lane=Lane.BLOCKS)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("operation", ["fetch", "push"])
def test_lost_peer_writes_no_more(operation: str, how: signal.Signals) -> None:
    """Killed: at once. Frozen: at the deadline; and when it wakes it finds nobody to write to."""
    peer, address = spawn("127.0.0.1", 4 * MIB)

    async def run() -> None:
        caller = Node(NixlTransport(deadline_s=1.5), 8 * MIB, seed=2)
        await caller.transport.start()
        task = asyncio.create_task(move(operation, caller, address))
        await asyncio.sleep(0.5)
        assert not task.done()
        os.kill(peer.pid, how)
        began = time.monotonic()
        with pytest.raises(TransferError):
            await task
        assert time.monotonic() - began < (1.5 if how is signal.SIGKILL else 6)
        before = bytes(caller.memory.view)
        os.kill(peer.pid, signal.SIGCONT)
        await asyncio.sleep(0.5)
        assert bytes(caller.memory.view) == before
        again, address_again = spawn("127.0.0.1", 0)
        try:
            await move("fetch", caller, address_again)  # the lane works again
        finally:
            again.kill()
            again.communicate()
        await caller.close()

    try:
        asyncio.run(run())
    finally:
        peer.kill()
        peer.communicate()


def test_idle_endpoints_cost_nothing() -> None:
    async def run() -> None:
        one, other = (Node(NixlTransport(), MIB, seed=index) for index in range(2))
        await one.transport.start()
        await other.transport.start()
        for lane in Lane:
            await one.transport.fetch(other.remote(Range(0, MIB)), local(Range(0, MIB)), lane=lane)
        await asyncio.sleep(0.1)
        before_s = time.process_time()
        await asyncio.sleep(2)
        assert time.process_time() - before_s < 0.02
        await one.close()
        await other.close()

    asyncio.run(run())


def test_packets_of_a_lane_bear_its_mark() -> None:
    """On every socket between the two endpoints, at both ends."""

    async def run() -> None:
        one, other = (Node(NixlTransport(), MIB, seed=index) for index in range(2))
        await one.transport.start()
        await other.transport.start()
        for lane, traffic in [(Lane.LAYERS, Traffic.LAYERS), (Lane.BLOCKS, Traffic.BLOCKS)]:
            await one.transport.fetch(other.remote(Range(0, MIB)), local(Range(0, MIB)), lane=lane)
            await one.transport.push(local(Range(0, MIB)), other.remote(Range(0, MIB)), lane=lane)
            marks = set(_marks(lane))
            assert marks == {(MARKS[traffic].traffic_class, MARKS[traffic].priority)}
        await one.close()
        await other.close()

    asyncio.run(run())


def _marks(lane: Lane) -> Iterator[tuple[int, int]]:
    """(traffic class, priority) of this process's connected sockets of the lane."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(entry))) as sock:
                if {sock.getsockname()[1], sock.getpeername()[1]} & set(PORTS[lane]):
                    tos = sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS)
                    yield tos, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)
        except (OSError, IndexError, TypeError):
            continue


def test_unknown_address_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="interface"):
        interface_of("192.0.2.1")


def test_tcp_address_is_a_transfer_error() -> None:
    async def run() -> None:
        one, other = Node(NixlTransport(), MIB, seed=1), Node(TcpTransport(), MIB, seed=2)
        await one.transport.start()
        await other.transport.start()
        with pytest.raises(TransferError, match="nixl://"):
            await one.transport.fetch(other.remote(Range(0, 10)), local(Range(0, 10)), lane=Lane.LAYERS)
        await one.close()
        await other.close()

    asyncio.run(run())


@pytest.mark.parametrize("flaw", [{"metadata": b"junk"}, {"ranges": (Range(2**64, MIB),)}])
def test_targets_that_cannot_be_fail_and_the_lane_lives(flaw: dict[str, object]) -> None:
    async def run() -> None:
        one, other = (Node(NixlTransport(), MIB, seed=index) for index in range(2))
        await one.transport.start()
        await other.transport.start()
        lane = other.transport._lanes[Lane.LAYERS]  # type: ignore[attr-defined]
        load, write = lane.load, lane.write
        lane.load = lambda sock, target: load(sock, replace(target, **flaw))
        if "ranges" in flaw:
            lane.write = lambda writes, *rest: write([w._replace(target=2**64) for w in writes], *rest)
        with pytest.raises(TransferError, match="NIXL could not"):
            await one.transport.fetch(other.remote(Range(0, MIB)), local(Range(0, MIB)), lane=Lane.LAYERS)
        lane.load, lane.write = load, write
        await one.transport.fetch(other.remote(Range(0, MIB)), local(Range(0, MIB)), lane=Lane.LAYERS)
        assert bytes(one.memory.view) == bytes(other.memory.view)
        await one.close()
        await other.close()

    asyncio.run(run())


def test_ucx_that_cannot_reach_the_peer_is_said() -> None:
    """Though the connection of the request works; nothing else is tried."""

    async def run() -> None:
        one, other, gone = (Node(NixlTransport(), MIB, seed=index) for index in range(3))
        for node in (one, other, gone):
            await node.transport.start()
        piece = Range(0, 1000)
        await one.transport.fetch(gone.remote(piece), local(piece), lane=Lane.LAYERS)
        stale = gone.transport._lanes[Lane.LAYERS]._described  # type: ignore[attr-defined]
        await gone.transport.fetch(one.remote(piece), local(piece), lane=Lane.LAYERS)
        described = next(iter(stale.values()))
        await gone.close()
        lane = one.transport._lanes[Lane.LAYERS]  # type: ignore[attr-defined]
        lane._described = dict.fromkeys(lane._described, described)
        with pytest.raises(TransferError, match="could not reach the peer"):
            await one.transport.fetch(other.remote(piece), local(piece), lane=Lane.LAYERS)
        await one.close()
        await other.close()

    asyncio.run(run())


NAMESPACES = ("dp-nixl-a", "dp-nixl-b")
# A caller in the other namespace: moves the arena both ways, says how many bytes its interface has carried.
CALLER = """
import asyncio, sys
from pathlib import Path
from dualpath.testing.transport import GRANT, MIB, Node, local
from dualpath.transport.base import Lane, Range, RemoteRanges
from dualpath.transport.nixl import NixlTransport

def carried():
    return [int(Path(f"/sys/class/net/dp-nixl1/statistics/{way}_bytes").read_text()) for way in ("rx", "tx")]

async def main():
    caller = Node(NixlTransport(sys.argv[1], key=sys.argv[3].encode()), 8 * MIB, seed=2)
    await caller.transport.start()
    whole = Range(0, 8 * MIB)
    remote = RemoteRanges(sys.argv[2], "arena", GRANT, [whole])
    before = carried()
    await caller.transport.fetch(remote, local(whole), lane=Lane.LAYERS)
    middle = carried()
    await caller.transport.push(local(whole), remote, lane=Lane.BLOCKS)
    after = carried()
    print(middle[0] - before[0], after[1] - middle[1])
    await caller.close()

asyncio.run(main())
"""


@pytest.fixture
def wire() -> Iterator[None]:
    """Two network namespaces with a cable between them, 10.77.9.1 and 10.77.9.2."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for name in NAMESPACES:
            ip("netns", "add", name)
        a, b = NAMESPACES
        ip("link", "add", "dp-nixl0", "netns", a, "type", "veth", "peer", "name", "dp-nixl1", "netns", b)
        for index, name in enumerate(NAMESPACES):
            ip("-n", name, "address", "add", f"10.77.9.{index + 1}/24", "dev", f"dp-nixl{index}")
            ip("-n", name, "link", "set", f"dp-nixl{index}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NAMESPACES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_payload_crosses_the_wire(wire: None) -> None:
    """Between processes of one machine UCX knows shorter ways; they must not be taken."""
    inside = [("ip", "netns", "exec", name) for name in NAMESPACES]
    peer, address = spawn("10.77.9.1", 0, KEY.decode(), before=inside[0])
    try:
        command = [*inside[1], sys.executable, "-c", CALLER, "10.77.9.2", address, KEY.decode()]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        for count in map(int, result.stdout.split()):
            assert 8 * MIB < count < 9.6 * MIB
    finally:
        peer.kill()
        peer.communicate()
