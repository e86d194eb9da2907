"""Transfers by NIXL writes: RDMA where the NIC has it, else TCP by UCX.

Requests, grants and acknowledgements go over the (authenticated) TCP connections of TcpTransport; only payload moves
by NIXL. In both directions the side that has the bytes writes, and the side whose memory is written (the owner)
first says where: after its grant check for a push, after the OK for a fetch. The owner does not let a transfer end,
well or badly, before no write of it can land any more.
"""

import asyncio
import socket
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from dualpath.core.errors import TransferError
from dualpath.transport.base import Authorize, Lane, LocalRanges, Range
from dualpath.transport.fds import receive_message_async, send_message_async
from dualpath.transport.nic import NicPair
from dualpath.transport.nixl_agent import address_of, bindings
from dualpath.transport.nixl_devices import mark_sockets, ucx_settings
from dualpath.transport.nixl_lane import NixlLane
from dualpath.transport.nixl_wire import STOP, TICK, End, Target, decode, encode, pair_up
from dualpath.transport.nixl_writing import SETTLE_S, Writing
from dualpath.transport.regions import Region
from dualpath.transport.streams import send_views
from dualpath.transport.tcp import TcpTransport
from dualpath.transport.wire import (
    Operation,
    Status,
    TransferReply,
    TransferRequest,
    decode_reply,
    frame,
    total_bytes,
)
from dualpath.transport.wire import encode as encode_request

_SCHEME = "nixl://"
_STOP_S = SETTLE_S + 1  # the writer needs SETTLE_S at most


class NixlTransport(TcpTransport):
    """An endpoint whose payload moves by NIXL; ConfigError when NIXL is not installed."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        nics: NicPair | None = None,
        deadline_s: float = 30,
        key: bytes | None = None,
    ) -> None:
        super().__init__(host, port, nics=nics, deadline_s=deadline_s, key=key)
        bindings()
        self._lanes = {lane: NixlLane(ucx_settings(self._host, lane), partial(mark_sockets, lane)) for lane in Lane}

    @property
    def address(self) -> str:
        """nixl://host:port, of the connections that carry requests."""
        return _SCHEME + super().address.partition("://")[2]

    async def start(self) -> None:
        """Listen; ConfigError when the address cannot be had, or UCX cannot work on its interface."""
        try:
            for lane in self._lanes.values():
                await lane.start()
            await super().start()
        except BaseException:
            await self._close_lanes()
            raise

    def register(self, name: str, memory: memoryview, *, fd: int = -1, authorize: Authorize) -> None:
        """As Endpoint.register; also registers the memory with the NIC (RDMA pins it)."""
        super().register(name, memory, fd=fd, authorize=authorize)
        region = self._regions.find(name)
        for lane in self._lanes.values():
            lane.register(region.identity, region.memory)

    def unregister(self, name: str) -> None:
        """As Endpoint.unregister; the NIC forgets the memory when its last transfer has ended."""
        with suppress(TransferError):
            region = self._regions.find(name)
            for lane in self._lanes.values():
                lane.unregister(region.identity)
        super().unregister(name)

    async def close(self) -> None:
        """As Endpoint.close; from then on no peer can write into this process."""
        await super().close()
        await self._close_lanes()

    async def _close_lanes(self) -> None:
        for lane in self._lanes.values():
            await lane.close()

    async def _connect(self, peer: str, lane: Lane) -> socket.socket:
        if not peer.startswith(_SCHEME):
            raise TransferError(f"{peer!r} is not an address of a NIXL endpoint (nixl://host:port)")
        return await super()._connect("tcp://" + peer.removeprefix(_SCHEME), lane)

    # The order of a transfer.

    async def _request(
        self, sock: socket.socket, peer: str, request: TransferRequest, local: memoryview, own: LocalRanges
    ) -> TransferReply:
        """FETCH: request, OK; we are the owner. PUSH: request, OK; we write; acknowledgement."""
        region = self._regions.find(own.region)
        if region.memory is not local:
            raise TransferError(f"region {own.region!r} was replaced meanwhile")
        await send_message_async(sock, encode_request(request))
        if request.operation is Operation.FETCH:
            reply = decode_reply((await receive_message_async(sock))[0])
            if reply.status is Status.OK:
                await self._let_in(sock, request.lane, region, own.ranges, tell=True)
            return reply
        try:
            reply = decode_reply((await receive_message_async(sock))[0])
        except BaseException:
            _say_end(sock, "given up", clean=True)
            raise
        if reply.status is Status.OK:
            await self._write(sock, request.lane, region, own.ranges, request.ranges)
            reply = decode_reply((await receive_message_async(sock))[0])
        return reply

    async def _serve_fetch(self, sock: socket.socket, request: TransferRequest, region: Region) -> None:
        await send_message_async(sock, encode_request(TransferReply(Status.OK)))
        await self._write(sock, request.lane, region, request.ranges, ())

    async def _serve_push(self, sock: socket.socket, request: TransferRequest, region: Region) -> None:
        await send_message_async(sock, encode_request(TransferReply(Status.OK)))
        await self._let_in(sock, request.lane, region, request.ranges, tell=False)

    async def _discard_push(self, sock: socket.socket, request: TransferRequest) -> None:
        """Nothing has come: bytes move only after the OK."""

    # The writer.

    async def _write(
        self, sock: socket.socket, lane: Lane, region: Region, ours: Sequence[Range], theirs: Sequence[Range]
    ) -> None:
        """Write own ranges where the owner says (into `theirs`, or for a fetch the ranges that it names)."""
        nixl = self._lanes[lane]
        with nixl.use(region.identity, awaited=False):
            writing = None
            try:
                target = decode((await receive_message_async(sock))[0], Target)
                writes = pair_up(address_of(region.memory), ours, target.address, theirs or target.ranges)
                await nixl.load(sock, target)
                writing = Writing(nixl, sock, region.identity, target, writes)
                await writing.run(self._nics.tx, lane)
            except BaseException as error:
                clean = writing is None or await _finished(writing.settled())
                if not clean:
                    await _finished(nixl.drop(target.agent))
                _say_end(sock, str(error) or type(error).__name__, clean=clean)
                raise
        await send_message_async(sock, encode(End(clean=True)))

    # The owner.

    async def _let_in(
        self, sock: socket.socket, lane: Lane, region: Region, ranges: Sequence[Range], *, tell: bool
    ) -> None:
        """Let the peer write into these ranges; `tell` names them to it. Ends when no such write can land any more;
        TransferError when not all bytes are there.
        """
        nixl = self._lanes[lane]
        with nixl.use(region.identity, awaited=True):
            agent, metadata = await nixl.describe(region.identity)
            paced = not self._nics.rx.unlimited
            told = tuple(ranges) if tell else ()
            target = Target(agent, region.identity, address_of(region.memory), paced, metadata, told)
            await send_message_async(sock, encode(target))
            ending = asyncio.create_task(_receive_end(sock))
            try:
                if paced:
                    await self._nics.rx.carry(total_bytes(ranges), lane, partial(_tick, sock))
                end = await asyncio.shield(ending)
            except BaseException:
                await _finished(_stop(sock, nixl, ending))
                raise
            if not end.clean:
                await _finished(nixl.reset())
        if end.error:
            raise TransferError(f"the peer could not write: {end.error}")


async def _stop(sock: socket.socket, nixl: NixlLane, ending: asyncio.Task[End]) -> None:
    """Make the writer stop. When it does not say that it has, nothing but the end of our agent stops its writes."""
    with suppress(OSError):
        sock.send(STOP)
    await asyncio.wait([ending], timeout=_STOP_S)
    if not ending.done():
        ending.cancel()
    elif not ending.cancelled() and not ending.exception() and ending.result().clean:
        return
    await nixl.reset()


async def _receive_end(sock: socket.socket) -> End:
    return decode((await receive_message_async(sock))[0], End)


def _say_end(sock: socket.socket, error: str, *, clean: bool) -> None:
    """Tell the owner without waiting, as we may be cancelled; an owner that does not hear resets its agent."""
    with suppress(OSError):
        sock.send(frame(encode(End(clean, error))))


async def _tick(sock: socket.socket, _: int) -> None:
    await send_views(sock, [memoryview(TICK)])


async def _finished(work: Coroutine[Any, Any, Any]) -> Any:
    """Result of bounded work that must be done even when we are cancelled in the middle of it."""
    task = asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()
