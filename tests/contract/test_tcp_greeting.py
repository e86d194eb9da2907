"""How TCP connections begin: who is let in, how long strangers may take, and the marks of both ends."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from dualpath.core.errors import ProtocolError, TransferError
from dualpath.core.traffic import MARKS
from dualpath.testing.transport import MIB, Node, local
from dualpath.transport import greeting, tcp
from dualpath.transport.base import Lane, Range
from dualpath.transport.greeting import Greeting
from dualpath.transport.tcp import TRAFFIC, TcpTransport

KEY, OTHER = b"the secret of a cluster of tests", b"the secret of some other cluster"
PIECE = Range(0, 5000)


@asynccontextmanager
async def nodes(ours: bytes | None, theirs: bytes | None) -> AsyncIterator[tuple[Node, Node]]:
    both = Node(TcpTransport(key=ours), MIB, seed=1), Node(TcpTransport(key=theirs), MIB, seed=2)
    for node in both:
        await node.transport.start()
    try:
        yield both
    finally:
        for node in both:
            await node.close()


@pytest.mark.parametrize(("ours", "theirs"), [(KEY, OTHER), (KEY, None), (None, KEY)])
@pytest.mark.parametrize("operation", ["fetch", "push"])
def test_only_the_same_secret_moves_bytes(ours: bytes | None, theirs: bytes | None, operation: str) -> None:
    async def run() -> None:
        async with nodes(ours, theirs) as (caller, server):
            before = bytes(caller.memory.view), bytes(server.memory.view)
            began = time.monotonic()
            with pytest.raises(TransferError):
                if operation == "fetch":
                    await caller.transport.fetch(server.remote(PIECE), local(PIECE), lane=Lane.LAYERS)
                else:
                    await caller.transport.push(local(PIECE), server.remote(PIECE), lane=Lane.LAYERS)
            assert time.monotonic() - began < 2
            assert before == (bytes(caller.memory.view), bytes(server.memory.view))

    asyncio.run(run())


async def _answer(sock: socket.socket, key: bytes | None) -> Lane | Exception:
    try:
        return await Greeting(key).answer(sock)
    except (ProtocolError, TransferError, TimeoutError) as error:
        return error
    finally:
        sock.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("key", [KEY, None])
def test_the_server_learns_the_lane(lane: Lane, key: bytes | None) -> None:
    async def run() -> None:
        near, far = _pair()
        with near:
            _, learned = await asyncio.gather(Greeting(key).call(near, lane), _answer(far, key))
            assert learned is lane

    asyncio.run(run())


def test_a_proof_fits_its_connection_role_and_lane_only() -> None:
    """What a man in the middle overheard opens no other connection; nor does the server's own proof, sent back."""
    keyed = Greeting(KEY)
    proofs = {
        keyed._proof(role, lane, callers, servers)
        for role in (b"caller", b"server")
        for lane in Lane
        for callers in (b"a" * 32, b"b" * 32)
        for servers in (b"a" * 32, b"b" * 32)
    }
    assert len(proofs) == 16

    async def run(change: int) -> None:
        near, far = _pair()
        loop = asyncio.get_running_loop()
        with near:
            answering = asyncio.create_task(_answer(far, KEY))
            await loop.sock_sendall(near, greeting._HELLO.pack(b"DPH1", True, Lane.LAYERS, b"n" * 32))
            answer = await loop.sock_recv(near, 64)
            proof = [keyed._proof(b"caller", Lane.LAYERS, b"n" * 32, answer[:32]), answer[32:], bytes(32)][change]
            await loop.sock_sendall(near, proof)
            result = await answering
            assert result is Lane.LAYERS if change == 0 else isinstance(result, ProtocolError)

    for change in range(3):
        asyncio.run(run(change))


@pytest.mark.parametrize(
    "said", [b"", b"DPH1", b"GET / HTTP/1.1\r\n" * 4, b"DPH1\1\7" + b"n" * 32, b"DPH2\1\0" + b"n" * 32]
)
def test_strangers_are_shown_out_in_time(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "DEADLINE_S", 0.2)

    async def run() -> None:
        async with nodes(KEY, KEY) as (caller, server):
            host, _, port = server.transport.address.removeprefix("tcp://").rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 2) == b""
            writer.close()
            await caller.transport.fetch(server.remote(PIECE), local(PIECE), lane=Lane.LAYERS)

    asyncio.run(run())


def test_strangers_are_limited_and_known_peers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "MAX_STRANGERS", 4)
    monkeypatch.setattr(greeting, "DEADLINE_S", 0.5)

    async def run() -> None:
        async with nodes(KEY, KEY) as (caller, server):
            host, _, port = server.transport.address.removeprefix("tcp://").rpartition(":")
            await caller.transport.fetch(server.remote(PIECE), local(PIECE), lane=Lane.LAYERS)
            silent = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
            await asyncio.sleep(0.05)
            reader, writer = await asyncio.open_connection(host, int(port))
            assert await asyncio.wait_for(reader.read(), 0.2) == b"", "one too many is closed at once"
            await caller.transport.fetch(server.remote(PIECE), local(PIECE), lane=Lane.LAYERS)
            await asyncio.sleep(0.6)
            await caller.transport.fetch(server.remote(PIECE), local(PIECE), lane=Lane.BLOCKS)
            for _, silent_writer in silent:
                silent_writer.close()
            writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_ends_bear_the_lanes_marks(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    marked: list[socket.socket] = []
    mark = tcp.mark
    monkeypatch.setattr(tcp, "mark", lambda sock, lane: (mark(sock, lane), marked.append(sock)))

    async def run(lane: Lane) -> None:
        marked.clear()
        one, other = (Node(TcpTransport(host, key=KEY), MIB, seed=seed) for seed in range(2))
        for node in (one, other):
            await node.transport.start()
        await one.transport.fetch(other.remote(PIECE), local(PIECE), lane=lane)
        expected = MARKS[TRAFFIC[lane]]
        level = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if host == "::1" else (socket.IPPROTO_IP, socket.IP_TOS)
        seen = set()
        for sock in list(marked):
            if sock.fileno() < 0:  # its descriptor has gone over to the pool's connection
                continue
            seen.add((sock.getsockopt(*level), sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)))
        idle = one.transport._peers[other.transport.address]._idle[lane]  # type: ignore[attr-defined]
        seen |= {(s.getsockopt(*level), s.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)) for s in idle}
        assert len(marked) == 2 and seen == {(expected.traffic_class, expected.priority)}
        for node in (one, other):
            await node.close()

    for lane in Lane:
        asyncio.run(run(lane))
