"""Transfers between processes of one machine by memory copy; a Unix socket carries requests, grants and the
NIC's pace.

The caller copies, in both directions, from or into the peer's memory, which it maps on first use (the memfd
comes with the server's first OK). After an OK the server sends one tick for each piece of PIECE_BYTES that
has passed its NIC; the caller copies a piece when it has the tick and its own NIC has let the piece pass.
It ends with a DONE byte.
"""

import asyncio
import os
import secrets
import socket
from pathlib import Path

from dualpath.core.errors import ProtocolError, TransferError
from dualpath.transport.base import Lane, LocalRanges
from dualpath.transport.endpoint import Endpoint
from dualpath.transport.fds import receive_message_async, send_message_async
from dualpath.transport.mapping import MappedRegions, copy_views
from dualpath.transport.nic import PIECE_BYTES, Link, NicPair
from dualpath.transport.regions import Cursor, Region
from dualpath.transport.streams import receive_views, send_views
from dualpath.transport.unix import listen_unix, of_this_user, socket_address
from dualpath.transport.wire import Operation, Status, TransferReply, TransferRequest, decode_reply, encode

_SCHEME = "shm:"
_SOCKET_NAME = "transport.sock"
_TICK = memoryview(b"t")
_DONE = memoryview(b"d")
_TICKS_AT_ONCE = 4096


class ShmTransport(Endpoint):
    """An endpoint for peers on this machine, of this user.

    Its socket is `socket_dir`/transport.sock, in a directory of its own that others cannot enter, or
    without a directory an abstract one, which leaves nothing behind. Peers' regions must have been
    registered with their memfd.
    """

    def __init__(self, socket_dir: Path | None = None, *, nics: NicPair | None = None, deadline_s: float = 30) -> None:
        super().__init__(nics=nics, deadline_s=deadline_s)
        self._path = f"{socket_dir}/{_SOCKET_NAME}" if socket_dir else f"@dualpath-{secrets.token_hex(8)}"
        self._mapped = MappedRegions()

    @property
    def address(self) -> str:
        """shm:<path of the socket>, or shm:@<abstract name>."""
        return _SCHEME + self._path

    async def close(self) -> None:
        """As Endpoint.close; also removes the socket and unmaps peers' memory."""
        listening = self._server is not None
        await super().close()
        self._mapped.clear()
        if listening and not self._path.startswith("@"):
            Path(self._path).unlink(missing_ok=True)

    def _listen(self) -> socket.socket:
        return listen_unix(self._path)

    def _admit(self, sock: socket.socket) -> bool:
        return of_this_user(sock)

    async def _connect(self, peer: str, lane: Lane) -> socket.socket:
        if not peer.startswith(_SCHEME):
            raise TransferError(f"{peer!r} is not an address of a shared-memory endpoint (shm:path)")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, socket_address(peer.removeprefix(_SCHEME)))
            if not of_this_user(sock):
                raise TransferError(f"{peer} belongs to another user")
        except BaseException:
            sock.close()
            raise
        return sock

    def _forget(self, peer: str) -> None:
        """Unmap the memory of a peer that has gone, or it would live on here."""
        super()._forget(peer)
        self._mapped.forget(peer)

    def _mapped_identity(self, peer: str, region: str) -> int:
        return self._mapped.identity(peer, region)

    async def _request(
        self, sock: socket.socket, peer: str, request: TransferRequest, local: memoryview, own: LocalRanges
    ) -> TransferReply:
        """Request, OK and ticks, DONE; and after a PUSH the acknowledgement. The grant is checked before
        bytes move.
        """
        await send_message_async(sock, encode(request))
        body, fds = await receive_message_async(sock, max_fds=1)
        try:
            reply = decode_reply(body)
            if reply.status is not Status.OK:
                return reply
            remote = self._mapped.resolve(peer, request, reply.identity, fds)
        finally:
            for fd in fds:
                os.close(fd)
        theirs, ours = Cursor(remote, request.ranges), Cursor(local, own.ranges)
        if request.operation is Operation.FETCH:
            await self._copy(sock, self._nics.rx, theirs, ours, request)
        else:
            await self._copy(sock, self._nics.tx, ours, theirs, request)
        await send_views(sock, [_DONE])
        if request.operation is Operation.PUSH:
            reply = decode_reply((await receive_message_async(sock))[0])
        return reply

    async def _copy(
        self, sock: socket.socket, link: Link, source: Cursor, into: Cursor, request: TransferRequest
    ) -> None:
        ticks = 0

        async def move(size: int) -> None:
            nonlocal ticks
            if not ticks:
                ticks = await _receive_ticks(sock)
            ticks -= 1
            copy_views(source.take(size), into.take(size))

        await link.carry(request.total_bytes, request.lane, move)

    def _granted(self, request: TransferRequest) -> Region:
        region = super()._granted(request)
        if region.fd < 0:
            raise TransferError(f"region {request.region!r} was registered without the memfd that peers map")
        return region

    async def _serve_fetch(self, sock: socket.socket, request: TransferRequest, region: Region) -> None:
        await self._permit(sock, request, region, self._nics.tx)

    async def _serve_push(self, sock: socket.socket, request: TransferRequest, region: Region) -> None:
        await self._permit(sock, request, region, self._nics.rx)

    async def _discard_push(self, sock: socket.socket, request: TransferRequest) -> None:
        """Nothing has come: bytes move only after the OK."""

    async def _permit(self, sock: socket.socket, request: TransferRequest, region: Region, link: Link) -> None:
        """Let the caller copy at the pace of our NIC, and wait until it has."""
        fds = [] if request.mapped == region.identity else [region.fd]
        await send_message_async(sock, encode(TransferReply(Status.OK, identity=region.identity)), fds)
        await _send_ticks(sock, link, request.total_bytes, request.lane)
        done = bytearray(1)
        await receive_views(sock, [memoryview(done)])
        if done != _DONE:
            raise ProtocolError("a copy must end with DONE")


async def _send_ticks(sock: socket.socket, link: Link, total_bytes: int, lane: Lane) -> None:
    async def tick(_: int) -> None:
        await send_views(sock, [_TICK])

    if not link.unlimited:
        await link.carry(total_bytes, lane, tick)
        return
    left = -(-total_bytes // PIECE_BYTES)
    while left:
        count = min(left, _TICKS_AT_ONCE)
        await send_views(sock, [memoryview(bytes(_TICK) * count)])
        left -= count


async def _receive_ticks(sock: socket.socket) -> int:
    """How many more pieces have passed the server's NIC; at least one."""
    data = await asyncio.get_running_loop().sock_recv(sock, _TICKS_AT_ONCE)
    if not data:
        raise TransferError("the other side closed the connection in the middle of a transfer")
    return len(data)
