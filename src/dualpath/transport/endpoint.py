"""What all socket transports share: regions, grants, connections, deadlines, counters, and the order of a
transfer.

A transport adds how peers connect and how the bytes of a granted transfer move.
"""

import asyncio
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from dualpath.core.errors import ConfigError, ProtocolError, TransferError
from dualpath.transport.base import Authorize, Lane, LocalRanges, RemoteRanges, Unreachable
from dualpath.transport.deadlines import Deadlines
from dualpath.transport.fds import receive_message_async, send_message_async
from dualpath.transport.nic import NicPair
from dualpath.transport.pool import PeerConnections
from dualpath.transport.regions import Region, Regions
from dualpath.transport.server import ConnectionServer
from dualpath.transport.streams import Stream
from dualpath.transport.wire import (
    Operation,
    Status,
    TransferReply,
    TransferRequest,
    decode_request,
    encode,
)

CONNECT_S = 5.0  # for a connection and its greeting
_log = logging.getLogger(__name__)


class Endpoint(ABC):
    """One node's end of the compute network over sockets; see base.Transport for what it promises."""

    def __init__(self, *, nics: NicPair | None, deadline_s: float) -> None:
        self._nics = nics or NicPair(None)
        self._deadlines = Deadlines(deadline_s)
        self._regions = Regions()
        self._peers: dict[str, PeerConnections] = {}
        self._server: ConnectionServer | None = None
        self._closed = False
        self._bytes = {f"{lane.name.lower()}_{way}": 0 for lane in Lane for way in ("out", "in")}

    # What a transport adds.

    @property
    @abstractmethod
    def address(self) -> str:
        """What peers put into RemoteRanges.peer; valid after start()."""

    @abstractmethod
    def _listen(self) -> socket.socket:
        """A bound, listening socket; ConfigError when that cannot be."""

    @abstractmethod
    async def _connect(self, peer: str, lane: Lane) -> socket.socket:
        """A non-blocking connection to a peer, for transfers of one lane."""

    @abstractmethod
    async def _request(
        self, sock: socket.socket, peer: str, request: TransferRequest, local: memoryview, own: LocalRanges
    ) -> TransferReply:
        """Carry out an own transfer; returns the server's last reply. Errors mean that the connection is
        unusable.
        """

    @abstractmethod
    async def _serve_fetch(self, sock: socket.socket, request: TransferRequest, region: Region) -> None:
        """Answer OK and let the bytes go to the caller; returns when the region is no longer touched."""

    @abstractmethod
    async def _serve_push(self, sock: socket.socket, request: TransferRequest, region: Region) -> None:
        """Let the caller's bytes into the region; returns when all are there. The acknowledgement follows."""

    @abstractmethod
    async def _discard_push(self, sock: socket.socket, request: TransferRequest) -> None:
        """Get rid of the payload of a refused push, where it comes unasked."""

    def _mapped_identity(self, peer: str, region: str) -> int:
        """Identity of the peer's region that is mapped here; 0 = none."""
        return 0

    def _forget(self, peer: str) -> None:
        """The peer's last connection has ended."""
        self._peers.pop(peer, None)

    # The contract.

    async def start(self) -> None:
        """Listen; ConfigError when the address cannot be had."""
        self._server = ConnectionServer(self._listen(), admit=self._admit, serve=self._serve)

    def register(self, name: str, memory: memoryview, *, fd: int = -1, authorize: Authorize) -> None:
        """Make `memory` a region until unregister() or close(); `fd` stays the caller's."""
        self._regions.add(name, memory, fd, authorize)

    def unregister(self, name: str) -> None:
        """Forget a region; transfers under way still end, later ones fail with TransferError."""
        self._regions.remove(name)

    async def drained(self, name: str, grant: int) -> None:
        """Return when no peer's transfer that was authorized under `grant` touches the region any more."""
        await self._regions.drained(name, grant)

    async def fetch(self, source: RemoteRanges, into: LocalRanges, *, lane: Lane) -> None:
        """Copy the peer's ranges into ours; see base.Transport."""
        await self._transfer(Operation.FETCH, source, into, lane)

    async def push(self, source: LocalRanges, into: RemoteRanges, *, lane: Lane) -> None:
        """Copy our ranges into the peer's; see base.Transport."""
        await self._transfer(Operation.PUSH, into, source, lane)

    def lane_bytes(self) -> dict[str, int]:
        """Bytes of finished transfers, by lane and direction; both ends count."""
        return dict(self._bytes)

    def kind_bytes(self) -> dict[str, int]:
        """As lane_bytes, in one sum under this kind's name."""
        return {self.address.partition(":")[0]: sum(self._bytes.values())}

    def fallbacks(self) -> dict[str, int]:
        """There is nothing to fall back on."""
        return {}

    async def close(self) -> None:
        """Close all connections and forget all regions; transfers under way fail with TransferError on both sides."""
        self._closed = True
        if self._server:
            await self._server.close()
        await self._deadlines.expire_all()
        for peer in list(self._peers.values()):
            peer.close()
        self._peers.clear()
        self._regions.clear()

    # Own transfers.

    async def _transfer(self, operation: Operation, remote: RemoteRanges, own: LocalRanges, lane: Lane) -> None:
        local = self._regions.own_memory(own, remote.ranges)
        mapped = self._mapped_identity(remote.peer, remote.region)
        ranges = tuple(remote.ranges)
        request = TransferRequest(operation, lane, remote.region, remote.grant, ranges, mapped)
        async with self._connection(remote.peer, lane) as sock:
            reply = await self._request(sock, remote.peer, request, local, own)
        reply.check()
        self._count(lane, "in" if operation is Operation.FETCH else "out", request)

    @asynccontextmanager
    async def _connection(self, peer: str, lane: Lane) -> AsyncIterator[socket.socket]:
        """A connection to the peer under this transfer's deadline, with all failures as TransferError."""
        if self._closed or self._server is None:
            raise TransferError("this endpoint is not open; start() it, and do not use it after close()")
        if peer not in self._peers:
            self._peers[peer] = PeerConnections(partial(self._reach, peer), partial(self._forget, peer))
        try:
            async with self._deadlines.one(), self._peers[peer].connection(lane) as sock:
                yield sock
        except TimeoutError:
            why = (
                "this endpoint was closed" if self._closed else f"it took longer than {self._deadlines.deadline_s:g} s"
            )
            raise TransferError(f"transfer with {peer} failed: {why}") from None
        except (OSError, ProtocolError, ConfigError) as error:
            raise TransferError(f"transfer with {peer} failed: {error}") from error

    async def _reach(self, peer: str, lane: Lane) -> socket.socket:
        """A new connection; Unreachable when there is none within CONNECT_S (or half of a shorter deadline)."""
        limit_s = min(CONNECT_S, self._deadlines.deadline_s / 2)
        try:
            async with asyncio.timeout(limit_s):
                return await self._connect(peer, lane)
        except TimeoutError:
            raise Unreachable(f"no connection to {peer} within {limit_s:g} s") from None
        except (OSError, TransferError) as error:
            raise Unreachable(f"no connection to {peer}: {error}") from error

    # Serving peers.

    def _admit(self, sock: socket.socket) -> bool:
        """Whether this peer may speak to us at all, as far as the kernel can tell."""
        return True

    async def _greet(self, sock: socket.socket) -> None:
        """What comes before a peer's first request; ProtocolError when it may not speak to us."""
        return

    async def _serve(self, sock: socket.socket) -> None:
        """Answer one request after the other until the connection ends; any error ends it."""
        sock = Stream(sock)
        try:
            await self._greet(sock)
            while True:
                await sock.readable()
                async with self._deadlines.one():
                    body, _ = await receive_message_async(sock)
                    await self._answer(sock, decode_request(body))
        except ProtocolError as error:
            _log.warning("closed a peer's connection: %s", error)
        except (TransferError, OSError) as error:  # TimeoutError is an OSError
            _log.debug("a peer's connection ended: %s", error)
        except Exception:
            _log.exception("closed a peer's connection")
        finally:
            sock.close()

    async def _answer(self, sock: socket.socket, request: TransferRequest) -> None:
        try:
            region = self._granted(request)
        except TransferError as error:
            if request.operation is Operation.PUSH:
                await self._discard_push(sock, request)
            await send_message_async(sock, encode(TransferReply.refusal(error)))
            return
        if request.operation is Operation.FETCH:
            with region.use(request.grant):
                await self._serve_fetch(sock, request, region)
            self._count(request.lane, "out", request)
        else:
            with region.use(request.grant):
                await self._serve_push(sock, request, region)
                reply = self._acknowledgement(request)
            self._count(request.lane, "in", request)
            await send_message_async(sock, encode(reply))

    def _acknowledgement(self, request: TransferRequest) -> TransferReply:
        """OK when the push was granted from beginning to end."""
        try:
            self._granted(request)
        except TransferError as error:
            return TransferReply.refusal(error)
        return TransferReply(Status.OK)

    def _granted(self, request: TransferRequest) -> Region:
        """The region, when the request may touch it; TransferError says why not."""
        region = self._regions.find(request.region)
        region.check(request.grant, request.ranges)
        return region

    def _count(self, lane: Lane, way: str, request: TransferRequest) -> None:
        self._bytes[f"{lane.name.lower()}_{way}"] += request.total_bytes
