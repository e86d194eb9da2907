"""Control sockets over TCP: members get in, nobody else does, traffic is encrypted, lost connections are noticed."""

import asyncio
import logging
import socket as std_socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from dualpath.control import outlet, sockets
from dualpath.control.outlet import Outlet
from dualpath.control.sockets import Door, connect, connect_watched, reconnections
from dualpath.core import wire
from dualpath.core.config_file import load_config
from dualpath.core.errors import ConfigError
from dualpath.core.ids import NodeId, RequestId
from dualpath.core.layout import BlockLayout
from dualpath.core.model import ModelSpec
from dualpath.core.report import Role
from dualpath.core.request import Tokens
from dualpath.gateway.main import tokens_endpoint
from dualpath.scheduler import server
from dualpath.scheduler.index import PrefixIndex
from dualpath.scheduler.zmq_client import ZmqSchedulerClient

KEY, OTHER = b"k" * 32, b"o" * 32
ANY_PORT = "tcp://127.0.0.1:*"
LAYOUT = BlockLayout(model="m", n_layers=2, block_tokens=4, token_bytes=8, dtype="float32")
SPEC = ModelSpec("m", "", LAYOUT, 1, 1, 1, 256, 1000, ())
NODE_HELLO = wire.NodeHello(wire.PROTOCOL_VERSION, NodeId("p0"), Role.PREFILL, SPEC, "tcp:x", 32, 4, 1e6)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


@asynccontextmanager
async def door(key: bytes | None, endpoint: str = ANY_PORT, kind: int = zmq.PULL) -> AsyncIterator[tuple[Door, str]]:
    opened = Door(kind, key)
    bound = opened.bind(endpoint)
    admitting = asyncio.create_task(opened.admit())
    try:
        yield opened, bound
    finally:
        admitting.cancel()
        await asyncio.gather(admitting, return_exceptions=True)
        opened.close()


@asynccontextmanager
async def client(endpoint: str, key: bytes | None, kind: int = zmq.PUSH) -> AsyncIterator[zmq.asyncio.Socket]:
    with zmq.asyncio.Context.instance().socket(kind) as socket:
        connect(socket, endpoint, key)
        yield socket


async def first_handshake(socket: zmq.asyncio.Socket, connect_it: Callable[[], None]) -> int:
    """The event that ends it. Where the sides disagree, the first to notice hangs up, and the other is cut off."""
    monitor = socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | sockets._FAILED | zmq.Event.DISCONNECTED)
    connect_it()
    try:
        async with asyncio.timeout(20):
            return int((await sockets.recv_monitor_message(monitor))["event"])
    finally:
        socket.disable_monitor()


@pytest.mark.parametrize("endpoint", [ANY_PORT, "tcp://[::1]:*", "tcp://localhost:*"])
def test_members_speak_in_order(endpoint: str) -> None:
    async def test() -> None:
        async with door(KEY, endpoint) as (inner, bound), client(bound, KEY) as socket:
            for number in range(100):
                await socket.send(b"%d" % number)
            assert [await inner.socket.recv() for _ in range(100)] == [b"%d" % n for n in range(100)]
            assert inner.socket.get(zmq.MECHANISM) == zmq.CURVE

    run(test)


@pytest.mark.parametrize("inner_key, outer_key", [(KEY, None), (KEY, OTHER), (None, KEY)])
def test_who_has_another_key_or_none_gets_nothing_through(inner_key: bytes | None, outer_key: bytes | None) -> None:
    async def test() -> None:
        async with door(inner_key) as (inner, bound):
            with zmq.asyncio.Context.instance().socket(zmq.PUSH) as stranger:
                event = await first_handshake(stranger, lambda: connect(stranger, bound, outer_key))
                assert event != zmq.Event.HANDSHAKE_SUCCEEDED
                stranger.send(b"strange", zmq.DONTWAIT)
                async with client(bound, inner_key) as member:
                    await member.send(b"member")
                    assert await inner.socket.recv() == b"member"
                    await asyncio.sleep(0.3)
                    assert await inner.socket.poll(0) == 0, "the stranger's message came in"

    run(test)


def connect_as_impostor(socket: zmq.asyncio.Socket, endpoint: str) -> None:
    """Somebody has found the server's public key, but not the members' secret one."""
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.curve_serverkey, _ = sockets._key_pair(KEY, "server")
    socket.connect(endpoint)


def test_the_servers_public_key_alone_opens_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with door(KEY) as (inner, bound):
            with zmq.asyncio.Context.instance().socket(zmq.PUSH) as socket:
                socket.linger = 0
                event = await first_handshake(socket, lambda: connect_as_impostor(socket, bound))
                assert event != zmq.Event.HANDSHAKE_SUCCEEDED
                socket.send(b"strange", zmq.DONTWAIT)
                assert await inner.socket.poll(200) == 0

    run(test)
    assert "refused a client at 127.0.0.1" in caplog.text


def test_without_an_answer_to_who_may_enter_nobody_does() -> None:
    async def test() -> None:
        inner = Door(zmq.PULL, KEY)
        bound = inner.bind(ANY_PORT)  # and nobody runs admit
        async with client(bound, KEY) as socket:
            await socket.send(b"early")
            assert await inner.socket.poll(500) == 0
        inner.close()

    run(test)


@pytest.mark.parametrize("key", [KEY, None])
def test_what_passes_is_encrypted_with_a_key(key: bytes | None) -> None:
    async def test() -> None:
        seen = bytearray()

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                seen.extend(data)
                sink.write(data)
            sink.close()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", int(bound.rsplit(":", 1)[1]))
            await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

        async with door(key) as (inner, bound):
            between = await asyncio.start_server(relay, "127.0.0.1", 0)
            port = between.sockets[0].getsockname()[1]
            async with client(f"tcp://127.0.0.1:{port}", key) as socket:
                await socket.send(b"the prompt of a user")
                assert await inner.socket.recv() == b"the prompt of a user"
            between.close()
            assert (b"the prompt of a user" in seen) == (key is None)
            assert KEY not in seen and (key is None or sockets._key_pair(KEY, "server")[0] not in seen)

    run(test)


def test_bytes_that_are_no_zeromq_do_no_harm() -> None:
    async def test() -> None:
        async with door(KEY) as (inner, bound):
            for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE" + b"\0" * 500):
                with std_socket.create_connection(("127.0.0.1", int(bound.rsplit(":", 1)[1]))) as raw:
                    raw.sendall(junk)
            async with client(bound, KEY) as socket:
                await socket.send(b"member")
                assert await inner.socket.recv() == b"member"

    run(test)


@pytest.mark.parametrize("endpoint", ["tcp://10.1.2.3:7000", "tcp://node7:7000", "tcp://*:7000"])
def test_an_open_network_needs_a_key(endpoint: str) -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match=r"set network\.key_file"):
            connect(zmq.asyncio.Context.instance().socket(zmq.PUSH), endpoint, None)
        closed = Door(zmq.PULL, None)
        with pytest.raises(ConfigError, match=r"set network\.key_file"):
            closed.bind(endpoint)
        closed.close()

    run(test)


def test_an_endpoint_that_cannot_be_used_is_the_operators_error(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(None) as (_, bound):
            for endpoint in (bound, f"ipc://{tmp_path}/absent/s.sock", "nonsense"):
                second = Door(zmq.PULL, None)
                with pytest.raises(ConfigError, match=r"cannot listen at .*free port"):
                    second.bind(endpoint)
                second.close()
        async with door(None, bound):
            pass  # closing has freed the port

    run(test)


async def end(watching: asyncio.Task[None], *open_sockets: zmq.asyncio.Socket) -> None:
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    for socket in open_sockets:
        socket.close()


def test_a_lost_connection_is_noticed_when_it_is_back() -> None:
    async def test() -> None:
        back = asyncio.Event()

        async def watch(monitor: zmq.asyncio.Socket) -> None:
            async for _ in reconnections(monitor, bound):
                back.set()

        socket = zmq.asyncio.Context.instance().socket(zmq.PUSH)
        async with door(KEY) as (inner, bound):
            monitor = connect_watched(socket, bound, KEY)
            watching = asyncio.create_task(watch(monitor))
            await socket.send(b"1")
            await inner.socket.recv()
            assert not back.is_set()
            inner.close()
            async with door(KEY, bound):
                await asyncio.wait_for(back.wait(), 10)
            await end(watching, socket, monitor)

    run(test)


def test_who_is_not_accepted_is_told_once_why(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async def watch(monitor: zmq.asyncio.Socket) -> None:
            async for _ in reconnections(monitor, bound):
                raise AssertionError("a stranger was let in")

        socket = zmq.asyncio.Context.instance().socket(zmq.PUSH)
        async with door(KEY) as (_, bound):
            monitor = connect_watched(socket, bound, OTHER)
            watching = asyncio.create_task(watch(monitor))
            await asyncio.sleep(1)
            await end(watching, socket, monitor)

    with caplog.at_level(logging.DEBUG):
        run(test)
    assert caplog.text.count("do both sides use the same network.key_file?") == 1
    for secret in (KEY, OTHER, sockets._key_pair(KEY, "server")[1], sockets._key_pair(OTHER, "client")[1]):
        assert secret.decode() not in caplog.text


def test_a_scheduler_hears_its_members_and_no_strangers(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        with std_socket.create_server(("127.0.0.1", 0)) as free:
            endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        scheduler = server.Scheduler(load_config(), SPEC, PrefixIndex())
        task = asyncio.create_task(scheduler.run(endpoint, KEY))
        try:
            context = zmq.asyncio.Context.instance()
            with context.socket(zmq.DEALER) as other, context.socket(zmq.DEALER) as plain:
                for stranger, key in ((other, OTHER), (plain, None)):
                    refused = await first_handshake(stranger, partial(connect, stranger, endpoint, key))
                    assert refused != zmq.Event.HANDSHAKE_SUCCEEDED
                    stranger.send(wire.encode(NODE_HELLO), zmq.DONTWAIT)
                gateway = await ZmqSchedulerClient.connect(endpoint, ANY_PORT, 20, KEY)
                assert "node p0" in (await gateway.report()).missing
                assert await other.poll(0) == await plain.poll(0) == 0, "a stranger was answered"
                async with client(endpoint, KEY, zmq.DEALER) as member:
                    await member.send(wire.encode(NODE_HELLO))
                    await asyncio.wait_for(member.recv(), 10)
                assert "node p0" not in (await gateway.report()).missing
                await gateway.close()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.DEBUG):
        run(test)
    assert caplog.text.count("node p0 joined") == 1 and "dropped" not in caplog.text


def test_a_scheduler_that_cannot_listen_says_so() -> None:
    async def test() -> None:
        scheduler = server.Scheduler(load_config(), SPEC, PrefixIndex())
        with pytest.raises(ConfigError, match="cannot listen at"):
            await scheduler.run("tcp://192.0.2.1:7000", KEY)

    run(test)


async def tokens_of(inner: Door) -> Any:
    return wire.Decoder(Tokens).decode(await asyncio.wait_for(inner.socket.recv(), 10))


def test_engines_send_tokens_over_tcp_and_outlive_wrong_gateways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "_GATEWAYS", 3)

    async def test() -> None:
        sender = Outlet(KEY)
        async with door(KEY) as (inner, bound):
            sender.send(bound, Tokens(RequestId("r"), 0, [5], [1.0]))
            assert (await tokens_of(inner)).ids == [5]
            for wrong in ("nonsense", "tcp://nonsense", *(f"tcp://127.0.0.1:{port}" for port in range(1, 9))):
                sender.send(wrong, Tokens(RequestId("x"), 0, [6], [1.0]))
            assert len(sender._sockets) == 3
            sender.send(bound, Tokens(RequestId("r"), 1, [7], [1.0]))
            assert (await tokens_of(inner)).ids == [7]
        sender.close()

    run(test)


def test_tokens_go_where_engines_can_reach(tmp_path: Path) -> None:
    network = {"run_dir": str(tmp_path), "scheduler": "tcp://10.0.0.1:7000", "key_file": "/k"}
    assert tokens_endpoint(load_config(None, {"network": network})) == f"ipc://{tmp_path}/gateway-tokens.sock"
    hosts = {"control": {"address": "10.0.0.1"}, "p0": {"address": "10.0.0.2"}, "d0": {"address": "10.0.0.3"}}
    assert tokens_endpoint(load_config(None, {"network": network, "hosts": hosts})) == "tcp://10.0.0.1:*"
