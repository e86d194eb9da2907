"""The other end of the burst generator: echoes or drops frames of a fixed size, for a bounded time."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

from dualpath.core.errors import ConfigError, ProtocolError
from dualpath.core.traffic import Traffic
from dualpath.qos.wire import ECHO, GREETING_BYTES, mark, receive_exactly, unpack_greeting

DEFAULT_SECONDS = 600.0
MOST_CONNECTIONS = 64
IDLE_S = 10.0  # a connection that says nothing for so long is closed
_POLL_S = 0.1


class BurstServer:
    """Listens on (host, port) until `seconds` are over or it is closed; `address` says where."""

    def __init__(self, host: str, port: int = 0, *, seconds: float = DEFAULT_SECONDS) -> None:
        self._end = time.monotonic() + seconds
        self._closed = threading.Event()
        self._places = threading.Semaphore(MOST_CONNECTIONS)
        self._thread = threading.Thread(target=self.run, daemon=True)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error}); name a local address and a free port"
            ) from None
        self._listener.settimeout(_POLL_S)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    def __enter__(self) -> "BurstServer":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        self._thread.join(1.0)

    def close(self) -> None:
        """Accept no more; connections end within their next wait."""
        self._closed.set()

    def run(self) -> None:
        """Serve in this thread until the end."""
        with self._listener:
            while not self._over():
                with contextlib.suppress(TimeoutError):
                    connection, _ = self._listener.accept()
                    if self._places.acquire(blocking=False):
                        threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
                    else:
                        connection.close()

    def _over(self) -> bool:
        return self._closed.is_set() or time.monotonic() >= self._end

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError, ProtocolError):
                connection.settimeout(IDLE_S)
                hello = bytearray(GREETING_BYTES)
                receive_exactly(connection, memoryview(hello))
                greeting = unpack_greeting(bytes(hello))
                if greeting.kind == ECHO:
                    self._echo(connection, greeting.frame_bytes)
                else:
                    self._drop(connection, greeting.frame_bytes)
        finally:
            self._places.release()

    def _echo(self, connection: socket.socket, frame_bytes: int) -> None:
        mark(connection, Traffic.MODEL)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        frame = memoryview(bytearray(frame_bytes))
        with realtime():
            while not self._over():
                receive_exactly(connection, frame)
                connection.sendall(frame)

    def _drop(self, connection: socket.socket, frame_bytes: int) -> None:
        mark(connection, Traffic.BLOCKS)
        frame = memoryview(bytearray(frame_bytes))
        while not self._over():
            # MSG_TRUNC: the kernel drops the bytes, so that a busy sink does not take the echo's processor time
            if not connection.recv_into(frame, frame_bytes, socket.MSG_TRUNC):
                return


@contextlib.contextmanager
def realtime() -> Iterator[bool]:
    """Put this thread before ordinary ones, so that waiting for a processor is not taken for network time.

    Gives False where the right to it (CAP_SYS_NICE) is missing; results then carry that word.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
