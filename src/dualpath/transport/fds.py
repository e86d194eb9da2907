"""Length-prefixed messages over stream sockets, with file descriptors (SCM_RIGHTS) where it is a Unix
socket.

Blocking sockets (engines) use send_message and receive_message and bound the wait by sock.settimeout();
non-blocking ones (agents) use send_message_async and receive_message_async inside asyncio.timeout. Both
speak the same frames.
"""

import os
import socket
from collections.abc import Sequence

from dualpath.core.errors import ProtocolError, TransferError
from dualpath.transport.streams import readable, writable
from dualpath.transport.wire import HEADER, body_bytes, frame


def send_message(sock: socket.socket, body: bytes, fds: Sequence[int] = ()) -> None:
    """Send a message; the receiver gets duplicates of `fds`. OSError when the connection is lost."""
    outgoing = _Outgoing(body, fds)
    while not outgoing.step(sock):
        pass


def receive_message(sock: socket.socket, *, max_fds: int = 0) -> tuple[bytes, list[int]]:
    """The next message and its descriptors, which the caller then owns.

    TransferError when the other side has closed; ProtocolError for garbage, a body over
    wire.MAX_BODY_BYTES, or more than `max_fds` descriptors (none stays open then).
    """
    with _Incoming(max_fds) as incoming:
        while not incoming.step(sock):
            pass
        return incoming.take()


async def send_message_async(sock: socket.socket, body: bytes, fds: Sequence[int] = ()) -> None:
    """As send_message, on a non-blocking socket."""
    outgoing = _Outgoing(body, fds)
    while True:
        try:
            if outgoing.step(sock):
                return
        except BlockingIOError:
            await writable(sock)


async def receive_message_async(sock: socket.socket, *, max_fds: int = 0) -> tuple[bytes, list[int]]:
    """As receive_message, on a non-blocking socket."""
    with _Incoming(max_fds) as incoming:
        while True:
            try:
                if incoming.step(sock):
                    return incoming.take()
            except BlockingIOError:
                await readable(sock)


class _Outgoing:
    """A message on its way out; descriptors travel with its first byte."""

    def __init__(self, body: bytes, fds: Sequence[int]) -> None:
        self._rest = memoryview(frame(body))
        self._fds = list(fds)

    def step(self, sock: socket.socket) -> bool:
        """Send once; True when all is sent."""
        if self._fds:
            sent = socket.send_fds(sock, [self._rest], self._fds)
            self._fds = []
        else:
            sent = sock.send(self._rest)
        self._rest = self._rest[sent:]
        return not self._rest


class _Incoming:
    """A message on its way in. As a context it closes the descriptors that nobody took."""

    def __init__(self, max_fds: int) -> None:
        self._max_fds = max_fds
        self._data = bytearray()
        self._size = HEADER.size
        self._header_done = False
        self._fds: list[int] = []

    def step(self, sock: socket.socket) -> bool:
        """Receive once; True when the message is complete."""
        missing = self._size - len(self._data)
        data, fds, flags, _ = socket.recv_fds(sock, missing, self._max_fds, socket.MSG_CMSG_CLOEXEC)
        self._fds += fds
        if flags & socket.MSG_CTRUNC or len(self._fds) > self._max_fds:
            raise ProtocolError(f"a message with more than {self._max_fds} file descriptors")
        if not data:
            raise TransferError("the other side closed the connection")
        self._data += data
        if len(self._data) == HEADER.size and not self._header_done:
            self._header_done = True
            self._size += body_bytes(bytes(self._data))
        return len(self._data) == self._size

    def take(self) -> tuple[bytes, list[int]]:
        """The body, and the descriptors, which are the caller's from here."""
        fds, self._fds = self._fds, []
        return bytes(self._data[HEADER.size :]), fds

    def __enter__(self) -> "_Incoming":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)
