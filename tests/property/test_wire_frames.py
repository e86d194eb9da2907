"""The transfer protocol's frames come back as encoded; garbage neither crashes a server nor touches memory."""

import asyncio
import socket
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dualpath.core.errors import ProtocolError
from dualpath.testing.transport import GRANT, Node, local
from dualpath.transport import wire
from dualpath.transport.base import Lane, Range
from dualpath.transport.fds import receive_message, send_message
from dualpath.transport.open import open_transport
from dualpath.transport.wire import HEADER, MAGIC, Operation, Status, TransferReply, TransferRequest

ranges = st.builds(Range, st.integers(0, 2**62), st.integers(1, 2**30))
requests = st.builds(
    TransferRequest,
    operation=st.sampled_from(Operation),
    lane=st.sampled_from(Lane),
    region=st.text(min_size=1, max_size=255),
    grant=st.integers(-(2**63), 2**63 - 1),
    ranges=st.lists(ranges, min_size=1, max_size=50).map(tuple),
    mapped=st.integers(0, 2**62),
)
replies = st.builds(TransferReply, st.sampled_from(Status), st.text(max_size=200), st.integers(0, 2**62))


@settings(max_examples=100)
@given(requests)
def test_requests_round_trip(request: TransferRequest) -> None:
    assert wire.decode_request(wire.encode(request)) == request


@settings(max_examples=50)
@given(replies)
def test_replies_round_trip(reply: TransferReply) -> None:
    assert wire.decode_reply(wire.encode(reply)) == reply


@settings(max_examples=50)
@given(st.binary(max_size=5000))
def test_frames_round_trip_through_a_socket(body: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        send_message(near, body)
        assert receive_message(far) == (body, [])


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from([wire.decode_request, wire.decode_reply]))
def test_garbage_bodies_are_protocol_errors(body: bytes, decode: Callable[[bytes], object]) -> None:
    try:
        message = decode(body)
    except ProtocolError:
        return
    assert isinstance(message, TransferRequest | TransferReply), "garbage may happen to be a message, nothing else"


@pytest.mark.parametrize(
    "wrong",
    [
        [0, 0, "arena", 1, []],
        [0, 0, "", 1, [[0, 1]]],
        [0, 2, "arena", 1, [[0, 1]]],
        [2, 0, "arena", 1, [[0, 1]]],
        [0, 0, "arena", 1, [[-1, 1]]],
        [0, 0, "arena", 1, [[0, 0]]],
        [0, 0, "arena", 1, [[0, -5]]],
        [0, 0, "arena", 1, [[0, 2**41]]],
        [0, 0, "arena", 1, [[0, 1]] * (wire.MAX_RANGES + 1)],
        [0, 0, "a" * 256, 1, [[0, 1]]],
        [0, 0, "arena", 1.5, [[0, 1]]],
        [0, 0, "arena", 1, [[0, 1]], 0, "more"],
    ],
)
def test_requests_that_cannot_be(wrong: list[object]) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_request(msgspec.msgpack.encode(wrong))


def test_largest_request_fits_a_frame() -> None:
    most = tuple(Range(2**62, 2**26) for _ in range(wire.MAX_RANGES))
    request = TransferRequest(Operation.PUSH, Lane.BLOCKS, "é" * 255, 2**63 - 1, most, 2**62)
    wire.frame(wire.encode(request))
    with pytest.raises(ValueError):
        wire.frame(bytes(wire.MAX_BODY_BYTES + 1))


@settings(max_examples=100)
@given(st.binary(min_size=HEADER.size, max_size=HEADER.size))
@example(HEADER.pack(MAGIC, wire.MAX_BODY_BYTES + 1))
@example(HEADER.pack(b"HTTP", 1))
def test_foreign_headers_are_protocol_errors(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.body_bytes(header)


_push = TransferRequest(Operation.PUSH, Lane.LAYERS, "arena", GRANT + 1, (Range(0, 4096),))
garbage = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(wire.frame),
    # A well-formed frame with one byte changed, under a grant that does not stand.
    st.builds(
        lambda at, value: bytes(value if i == at else b for i, b in enumerate(wire.frame(wire.encode(_push)))),
        st.integers(HEADER.size, HEADER.size + 8),
        st.integers(0, 255),
    ),
)


@pytest.mark.parametrize("kind", ["tcp", "shm"])
def test_server_survives_garbage(kind: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(garbage, min_size=1, max_size=4))
    def feed(chunks: list[bytes]) -> None:
        asyncio.run(_feed(kind, chunks))

    feed()


async def _feed(kind: str, chunks: list[bytes]) -> None:
    server, caller = Node(open_transport(kind), 8192, seed=1), Node(open_transport(kind), 8192, seed=2)
    await server.transport.start()
    await caller.transport.start()
    before = bytes(server.memory.view)
    with await asyncio.to_thread(_connect, server.transport.address) as sock:
        for chunk in chunks:
            try:
                sock.sendall(chunk)
            except OSError:
                break
        await asyncio.sleep(0.001)
    piece = Range(100, 4000)
    await caller.transport.fetch(server.remote(piece), local(piece), lane=Lane.LAYERS)
    assert caller.bytes_of(piece) == server.bytes_of(piece)
    assert bytes(server.memory.view) == before
    await caller.close()
    await server.close()


def _connect(address: str) -> socket.socket:
    if address.startswith("tcp://"):
        host, port = address.removeprefix("tcp://").split(":")
        return socket.create_connection((host, int(port)))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect("\0" + address.removeprefix("shm:@"))
    return sock
