"""Vectored, zero-copy socket I/O on an asyncio loop: bytes move between the kernel and given memory,
nothing between.

Sockets are non-blocking stream sockets. No function here has a deadline: callers wrap them in
asyncio.timeout.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence

from dualpath.core.errors import TransferError

_MAX_VIEWS = 512  # a call; the kernel takes at most 1024
_SCRATCH_BYTES = 256 * 1024
_YIELD_BYTES = 1 << 20  # after which other tasks get a turn even when there is more to do


class Stream(socket.socket):
    """A connection that stays registered with its event loop between waits: to come and go for every message costs
    more than the system calls of a small transfer.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Takes over the socket's descriptor. Belongs to the running loop."""
        super().__init__(fileno=sock.detach())
        self.setblocking(False)
        self._loop = asyncio.get_running_loop()

    async def readable(self) -> None:
        """Return when there are bytes, or the end."""
        ready = self._loop.create_future()
        self._loop.add_reader(self, self._wake, ready)
        await ready

    def watch(self, on_input: Callable[[], None]) -> None:
        """Until the next wait call `on_input` when something arrives."""
        self._loop.add_reader(self, on_input)

    def ignore(self) -> None:
        """Until the next wait nothing happens when something arrives."""
        self._loop.remove_reader(self)

    def close(self) -> None:
        """As socket.close; the loop forgets the connection first, or it would take the next one for it."""
        if self.fileno() >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self)
        super().close()

    def _wake(self, ready: asyncio.Future[None]) -> None:
        """Input stays, so the loop wakes us until it is read: a second time means that nobody reads for now."""
        if ready.done():
            self.ignore()
        else:
            ready.set_result(None)


async def readable(sock: socket.socket) -> None:
    """Return when the socket may have bytes, or has ended."""
    if isinstance(sock, Stream):
        await sock.readable()
        return
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
    rest, done = list(views), 0
    while rest:
        try:
            sent = sock.sendmsg(rest[:_MAX_VIEWS])
        except BlockingIOError:
            await writable(sock)
        else:
            rest, done = _after(rest, sent), done + sent
            if rest and done >= _YIELD_BYTES:
                await asyncio.sleep(0)
                done = 0


async def receive_views(sock: socket.socket, views: Sequence[memoryview]) -> None:
    """Fill all views, in order; TransferError when the other side ends before that."""
    rest, done = list(views), 0
    while rest:
        try:
            received = sock.recvmsg_into(rest[:_MAX_VIEWS])[0]
        except BlockingIOError:
            await readable(sock)
        else:
            if not received:
                raise TransferError("the other side closed the connection in the middle of a transfer")
            rest, done = _after(rest, received), done + received
            if rest and done >= _YIELD_BYTES:
                await asyncio.sleep(0)
                done = 0


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
