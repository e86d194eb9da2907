"""Transfers over TCP: payload streams between the sockets and the registered memories, without a copy of
ours.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

from dualpath.core.errors import ConfigError, ProtocolError, TransferError
from dualpath.core.traffic import MARKS, Traffic
from dualpath.transport.base import Lane, LocalRanges, Range
from dualpath.transport.endpoint import Endpoint
from dualpath.transport.fds import receive_message_async, send_message_async
from dualpath.transport.greeting import Greeting
from dualpath.transport.nic import NicPair
from dualpath.transport.regions import Cursor, Region, coalesce
from dualpath.transport.streams import drain, receive_views, send_views
from dualpath.transport.wire import (
    Operation,
    Status,
    TransferReply,
    TransferRequest,
    decode_reply,
    encode,
    frame,
    total_bytes,
)

MAX_STRANGERS = 128  # connections at once that have not proved themselves yet; each has greeting.DEADLINE_S
DEAD_S = 15  # of silence after which a peer's host counts as gone
TRAFFIC = {Lane.LAYERS: Traffic.LAYERS, Lane.BLOCKS: Traffic.BLOCKS}
_SCHEME = "tcp://"
_OK = encode(TransferReply(Status.OK))


class TcpTransport(Endpoint):
    """An endpoint on one address of this host. Other addresses than loopback need the cluster's `key`: ConfigError."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        nics: NicPair | None = None,
        deadline_s: float = 30,
        key: bytes | None = None,
    ) -> None:
        super().__init__(nics=nics, deadline_s=deadline_s)
        self._host, self._port = _allowed(host, keyed=key is not None), port
        self._greeting = Greeting(key)
        self._strangers = 0  # connections in their greeting

    @property
    def address(self) -> str:
        """tcp://host:port."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{_SCHEME}{host}:{self._port}"

    def _listen(self) -> socket.socket:
        sock = _tcp_socket(self._host)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._host, self._port))
            sock.listen(128)
        except (OSError, OverflowError) as error:
            sock.close()
            raise ConfigError(
                f"cannot listen on {self.address}: {error}; choose another port, or 0 for a free one"
            ) from None
        self._port = sock.getsockname()[1]
        return sock

    def _admit(self, sock: socket.socket) -> bool:
        set_options(sock)
        return True

    async def _greet(self, sock: socket.socket) -> None:
        if self._strangers >= MAX_STRANGERS:
            raise ProtocolError(f"more than {MAX_STRANGERS} connections that have not said who they are")
        self._strangers += 1
        try:
            mark(sock, await self._greeting.answer(sock))
        finally:
            self._strangers -= 1

    async def _connect(self, peer: str, lane: Lane) -> socket.socket:
        host, port = _parse(peer)
        sock = _tcp_socket(host)
        try:
            set_options(sock)
            mark(sock, lane)
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
            await self._greeting.call(sock, lane)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _request(
        self, sock: socket.socket, peer: str, request: TransferRequest, local: memoryview, own: LocalRanges
    ) -> TransferReply:
        """FETCH: request, reply, bytes. PUSH: request and bytes, reply; a refused push costs its bytes'
        way.
        """
        if request.operation is Operation.PUSH:
            await self._send(sock, encode(request), local, own.ranges, request.lane)
        else:
            await send_message_async(sock, encode(request))
        reply = decode_reply((await receive_message_async(sock))[0])
        if request.operation is Operation.FETCH and reply.status is Status.OK:
            await self._receive(sock, local, own.ranges, request.lane)
        return reply

    async def _serve_fetch(self, sock: socket.socket, request: TransferRequest, region: Region) -> None:
        await self._send(sock, _OK, region.memory, request.ranges, request.lane)

    async def _serve_push(self, sock: socket.socket, request: TransferRequest, region: Region) -> None:
        await self._receive(sock, region.memory, request.ranges, request.lane)

    async def _discard_push(self, sock: socket.socket, request: TransferRequest) -> None:
        await drain(sock, request.total_bytes)

    async def _send(
        self, sock: socket.socket, message: bytes, memory: memoryview, ranges: Sequence[Range], lane: Lane
    ) -> None:
        """A message and the bytes behind it: in one go, unless the NIC has to let pieces pass."""
        cursor, count = Cursor(memory, coalesce(ranges)), total_bytes(ranges)
        if self._nics.tx.unlimited:
            await send_views(sock, [memoryview(frame(message)), *cursor.take(count)])
            return

        async def move(size: int) -> None:
            await send_views(sock, cursor.take(size))

        await send_message_async(sock, message)
        await self._nics.tx.carry(count, lane, move)

    async def _receive(self, sock: socket.socket, memory: memoryview, ranges: Sequence[Range], lane: Lane) -> None:
        cursor, count = Cursor(memory, coalesce(ranges)), total_bytes(ranges)
        if self._nics.rx.unlimited:
            await receive_views(sock, cursor.take(count))
            return

        async def move(size: int) -> None:
            await receive_views(sock, cursor.take(size))

        await self._nics.rx.carry(count, lane, move)


def set_options(sock: socket.socket) -> None:
    """Send at once, and notice within DEAD_S that the other host is gone without a word.

    A cable that is plugged in again before that goes unnoticed but for the delay.
    """
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_USER_TIMEOUT, DEAD_S * 1000),
        (socket.TCP_KEEPIDLE, DEAD_S // 3),
        (socket.TCP_KEEPINTVL, DEAD_S // 3),
        (socket.TCP_KEEPCNT, 2),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def mark(sock: socket.socket, lane: Lane) -> None:
    """Let the network and this host's queues know the lane (docs/design/lanes.md)."""
    marks = MARKS[TRAFFIC[lane]]
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, marks.traffic_class)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, marks.traffic_class)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, marks.priority)  # last: IP_TOS changes it


def _allowed(host: str, *, keyed: bool) -> str:
    """The address as given; ConfigError when it is no numeric address (or "localhost"), or needs a key."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ConfigError(f"{host!r} is not an IP address; give one such as 127.0.0.1") from None
    if address.is_unspecified or address.is_multicast:
        raise ConfigError(f"peers cannot connect to {host}; give this host's own address on the compute network")
    if not (address.is_loopback or keyed):
        raise ConfigError(f"{host} is reachable from other hosts, which must know a secret: set network.key_file")
    return str(address)


def _parse(peer: str) -> tuple[str, int]:
    host, _, port = peer.removeprefix(_SCHEME).rpartition(":")
    if not peer.startswith(_SCHEME) or not host or not port.isdecimal() or int(port) > 65_535:
        raise TransferError(f"{peer!r} is not an address of a TCP endpoint (tcp://host:port)")
    return host.strip("[]"), int(port)


def _tcp_socket(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock
