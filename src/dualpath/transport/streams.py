"""Vectored, zero-copy socket I/O on an asyncio loop: bytes move between the kernel and given memory,
nothing between.

Sockets are non-blocking stream sockets. No function here has a deadline: callers wrap them in
asyncio.timeout.
"""

import asyncio
import socket
from collections.abc import Sequence

from dualpath.core.errors import TransferError

_MAX_VIEWS = 512  # a call; the kernel takes at most 1024
_SCRATCH_BYTES = 256 * 1024


async def readable(sock: socket.socket) -> None:
    """Return when the socket has bytes, or has ended."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


async def writable(sock: socket.socket) -> None:
    """Return when the socket takes bytes, or has ended."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(sock, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


async def send_views(sock: socket.socket, views: Sequence[memoryview]) -> None:
    """Send all bytes of all views, in order; OSError when the connection is lost."""
    rest = list(views)
    while rest:
        try:
            sent = sock.sendmsg(rest[:_MAX_VIEWS])
        except BlockingIOError:
            await writable(sock)
        else:
            rest = _after(rest, sent)


async def receive_views(sock: socket.socket, views: Sequence[memoryview]) -> None:
    """Fill all views, in order; TransferError when the other side ends before that."""
    rest = list(views)
    while rest:
        try:
            received = sock.recvmsg_into(rest[:_MAX_VIEWS])[0]
        except BlockingIOError:
            await readable(sock)
        else:
            if not received:
                raise TransferError("the other side closed the connection in the middle of a transfer")
            rest = _after(rest, received)


async def drain(sock: socket.socket, count: int) -> None:
    """Receive `count` bytes and forget them: the payload of a push that was refused."""
    scratch = memoryview(bytearray(min(count, _SCRATCH_BYTES)))
    while count:
        part = scratch[: min(count, len(scratch))]
        await receive_views(sock, [part])
        await asyncio.sleep(0)
        count -= len(part)


def _after(views: list[memoryview], count: int) -> list[memoryview]:
    """What is left of (non-empty) views behind their first `count` bytes."""
    for index, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[index + 1 :]]
        count -= len(view)
    return []


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
