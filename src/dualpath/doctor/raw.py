"""A bare TCP socket copy: the yardstick of transports. Threads, blocking calls, preallocated memory, nothing else.

A connection begins with the server's token, which peers learn over the transport and so only with the cluster's key.
Then, again and again: an operation and a size; the server answers a FETCH with so many bytes, and a PUSH, once all of
its bytes are there, with one.
"""

import contextlib
import hmac
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from dualpath.core.errors import TransferError
from dualpath.doctor.budget import Stopwatch
from dualpath.doctor.reads import Pass

FETCH, PUSH = b"F", b"P"
MAX_TRANSFER_BYTES = 8 << 20
MAX_CONNECTIONS = 32
TOKEN_BYTES = 16
_REQUEST = struct.Struct("<cI")
_DEADLINE_S = 10.0


class RawServer:
    """Serves peers' copies from threads until closed; `port` and `token` are what they need to know."""

    def __init__(self, host: str) -> None:
        self.token = secrets.token_bytes(TOKEN_BYTES)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening and end all connections."""
        for sock in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # closed
                return
            if len(self._connections) >= MAX_CONNECTIONS:
                sock.close()
                continue
            self._connections.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        memory = memoryview(bytearray(MAX_TRANSFER_BYTES))
        try:
            _prepare(sock)
            token = memoryview(bytearray(TOKEN_BYTES))
            receive(sock, token)
            while hmac.compare_digest(token, self.token):
                header = memoryview(bytearray(_REQUEST.size))
                receive(sock, header)
                operation, size = _REQUEST.unpack(header)
                if operation not in (FETCH, PUSH) or not 0 < size <= MAX_TRANSFER_BYTES:
                    return
                _answer(sock, operation, memory[:size])
        except (OSError, TransferError):
            return  # the peer has gone, or is silent: nothing is lost
        finally:
            self._connections.discard(sock)
            sock.close()


def _answer(sock: socket.socket, operation: bytes, memory: memoryview) -> None:
    if operation == FETCH:
        sock.sendall(memory)
    else:
        receive(sock, memory)
        sock.sendall(b"k")


class RawClient:
    """Connections to one server, each with memory of its own; TransferError when it does not answer."""

    def __init__(self, host: str, port: int, token: bytes, memories: list[memoryview]) -> None:
        self._pool = ThreadPoolExecutor(len(memories))
        self._pairs: list[tuple[socket.socket, memoryview]] = []
        try:
            for memory in memories:
                sock = socket.create_connection((host, port), timeout=_DEADLINE_S)
                self._pairs.append((sock, memory))
                _prepare(sock)
                sock.sendall(token)
        except OSError as error:
            self.close()
            raise TransferError(f"no bare connection to {host} port {port}: {error}") from None

    def rate(self, operation: bytes, size: int, concurrency: int, seconds: float) -> Pass:
        """Copy this size again and again over so many connections."""
        watch = Stopwatch()

        def work(pair: tuple[socket.socket, memoryview]) -> int:
            count = 0
            while not count or watch.seconds < seconds:
                copy(pair[0], operation, pair[1][:size])
                count += size
            return count

        with _as_transfer_errors():
            count = sum(self._pool.map(work, self._pairs[:concurrency]))
        return Pass(count, watch.seconds)

    def round_trips_ns(self, size: int, seconds: float) -> list[int]:
        """Times of small fetches, one after the other."""
        times: list[int] = []
        watch = Stopwatch()
        sock, memory = self._pairs[0]
        with _as_transfer_errors():
            while not times or watch.seconds < seconds:
                start_ns = time.perf_counter_ns()
                copy(sock, FETCH, memory[:size])
                times.append(time.perf_counter_ns() - start_ns)
        return times

    def close(self) -> None:
        """Close the connections."""
        for sock, _ in self._pairs:
            sock.close()
        self._pool.shutdown(wait=False)


def copy(sock: socket.socket, operation: bytes, memory: memoryview) -> None:
    """Fetch into, or push from, this memory."""
    sock.sendall(_REQUEST.pack(operation, len(memory)))
    if operation == FETCH:
        receive(sock, memory)
    else:
        sock.sendall(memory)
        receive(sock, memoryview(bytearray(1)))


def receive(sock: socket.socket, into: memoryview) -> None:
    """Fill the memory; TransferError when the other side ends before that."""
    done = 0
    while done < len(into):
        count = sock.recv_into(into[done:])
        if not count:
            raise TransferError("the other side closed a bare connection in the middle of a copy")
        done += count


def _prepare(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(_DEADLINE_S)


@contextlib.contextmanager
def _as_transfer_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransferError(f"a bare connection failed: {error}") from None
