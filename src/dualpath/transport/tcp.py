"""Transfers over TCP: payload streams between the sockets and the registered memories, without a copy of
ours.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

from dualpath.core.errors import ConfigError, TransferError
from dualpath.transport.base import Lane, LocalRanges, Range
from dualpath.transport.endpoint import Endpoint
from dualpath.transport.fds import receive_message_async, send_message_async
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
    total_bytes,
)

_SCHEME = "tcp://"


class TcpTransport(Endpoint):
    """An endpoint on a loopback address; ConfigError for any other, for peers are not authenticated."""

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, nics: NicPair | None = None, deadline_s: float = 30
    ) -> None:
        super().__init__(nics=nics, deadline_s=deadline_s)
        self._host, self._port = _loopback(host), port

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
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return True

    async def _connect(self, peer: str) -> socket.socket:
        host, port = _parse(peer)
        sock = _tcp_socket(host)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
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
        await send_message_async(sock, encode(request))
        if request.operation is Operation.PUSH:
            await self._send(sock, local, own.ranges, request.lane)
        reply = decode_reply((await receive_message_async(sock))[0])
        if request.operation is Operation.FETCH and reply.status is Status.OK:
            await self._receive(sock, local, own.ranges, request.lane)
        return reply

    async def _serve_fetch(self, sock: socket.socket, request: TransferRequest, region: Region) -> None:
        await send_message_async(sock, encode(TransferReply(Status.OK)))
        await self._send(sock, region.memory, request.ranges, request.lane)

    async def _serve_push(self, sock: socket.socket, request: TransferRequest, region: Region) -> None:
        await self._receive(sock, region.memory, request.ranges, request.lane)

    async def _discard_push(self, sock: socket.socket, request: TransferRequest) -> None:
        await drain(sock, request.total_bytes)

    async def _send(self, sock: socket.socket, memory: memoryview, ranges: Sequence[Range], lane: Lane) -> None:
        cursor = Cursor(memory, coalesce(ranges))

        async def move(size: int) -> None:
            await send_views(sock, cursor.take(size))

        await self._nics.tx.carry(total_bytes(ranges), lane, move)

    async def _receive(self, sock: socket.socket, memory: memoryview, ranges: Sequence[Range], lane: Lane) -> None:
        cursor = Cursor(memory, coalesce(ranges))

        async def move(size: int) -> None:
            await receive_views(sock, cursor.take(size))

        await self._nics.rx.carry(total_bytes(ranges), lane, move)


def _loopback(host: str) -> str:
    """The address as given; ConfigError when it is not a numeric loopback address (or "localhost")."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ConfigError(f"{host!r} is not an IP address; give one such as 127.0.0.1") from None
    if not address.is_loopback:
        raise ConfigError(f"refusing to listen on {host}: peers are not authenticated; use a loopback address")
    return str(address)


def _parse(peer: str) -> tuple[str, int]:
    host, _, port = peer.removeprefix(_SCHEME).rpartition(":")
    if not peer.startswith(_SCHEME) or not host or not port.isdecimal():
        raise TransferError(f"{peer!r} is not an address of a TCP endpoint (tcp://host:port)")
    return host.strip("[]"), int(port)


def _tcp_socket(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock
