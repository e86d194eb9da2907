"""What an engine attaches to its node's agent with: messages both ways; the mapped arena and the layer window.

Synchronous, for an engine's compute loop: it polls between steps and blocks only when it has nothing to do.
"""

import os
import select
import socket
import time
from pathlib import Path
from typing import Any

from dualpath.core import engine_wire, wire
from dualpath.core.errors import ConfigError, ProtocolError, ServiceError, TransferError
from dualpath.core.ids import EngineId
from dualpath.core.report import Role
from dualpath.node.control import Condition, ControlPage
from dualpath.transport.fds import receive_message, send_message
from dualpath.transport.memory import SharedMemory

CONNECT_DEADLINE_S = 60.0
SEND_DEADLINE_S = 60.0
LAYER_DEADLINE_S = 120.0
_MAX_FDS = 5


class BatchAborted(Exception):
    """A transfer of the running batch failed; its requests are served by another attempt."""


class AgentClient:
    """One engine's connection to its agent: messages both ways."""

    def __init__(self, path: Path, hello: engine_wire.EngineHello) -> None:
        self._decoder = wire.Decoder(engine_wire.AgentToEngine)
        self._socket, answer, _ = _introduce(path, hello)
        if not isinstance(answer, engine_wire.EngineAccepted):
            self._socket.close()
            raise ProtocolError(f"{type(answer).__name__} instead of a welcome")
        self.engine = answer.engine
        self.role = answer.role
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def send(self, message: wire.Message) -> None:
        """Send a message; ServiceError when the agent is gone."""
        try:
            self._socket.settimeout(SEND_DEADLINE_S)
            send_message(self._socket, wire.encode(message))
        except OSError as error:
            raise ServiceError(f"the node's agent is gone: {error}") from None

    def receive(self, timeout_s: float) -> list[Any]:
        """Messages that are there; waits up to `timeout_s` for the first one."""
        return self._drain() if self._poll.poll(timeout_s * 1000) else []

    def _drain(self) -> list[Any]:
        messages = []
        ready = select.poll()
        ready.register(self._socket, select.POLLIN)
        try:
            while ready.poll(0):
                self._socket.settimeout(SEND_DEADLINE_S)
                messages.append(self._decoder.decode(receive_message(self._socket)[0]))
        except (TransferError, OSError) as error:
            raise ServiceError(f"the node's agent is gone: {error}") from None
        return messages

    def close(self) -> None:
        """Detach."""
        self._socket.close()


class SharedLayers:
    """The memory that one process of an attached engine shares with the agent: the arena; of prefill also the window.

    Its connection says nothing after the welcome: its end says that the agent is gone.
    """

    def __init__(self, path: Path, engine: EngineId, rank: int = 0) -> None:
        self._socket, answer, fds = _introduce(path, engine_wire.RankHello(wire.PROTOCOL_VERSION, engine, rank))
        wanted = _MAX_FDS if isinstance(answer, engine_wire.RankAccepted) and answer.role is Role.PREFILL else 1
        if len(fds) != wanted:
            for fd in fds:
                os.close(fd)
            self._socket.close()
            raise ProtocolError(f"{type(answer).__name__} with {len(fds)} descriptors instead of a welcome")
        self.arena = SharedMemory(fds[0])
        self.window: SharedMemory | None = None
        if len(fds) == _MAX_FDS:
            self._take_window(fds)

    def _take_window(self, fds: list[int]) -> None:
        self.window = SharedMemory(fds[1])
        self._control_memory = SharedMemory(fds[2])
        self.control = ControlPage(self._control_memory.view, own_bell=fds[3], peer_bell=fds[4])
        self._bell = select.poll()
        self._bell.register(fds[3], select.POLLIN)

    def wait_filled(self, sequence: int, first_layer: int) -> int:
        """Wait until layer `sequence` lies in the window; returns the wait in ns. BatchAborted if it never will."""
        start_ns = time.monotonic_ns()
        self._until(lambda: self.control.filled > sequence, start_ns)
        if self.control.failed == first_layer + 1:
            raise BatchAborted
        return time.monotonic_ns() - start_ns

    def _until(self, condition: Condition, start_ns: int) -> None:
        while not condition():
            if time.monotonic_ns() - start_ns > LAYER_DEADLINE_S * 1e9:
                raise ServiceError(f"no layer arrived in {LAYER_DEADLINE_S:g} s; is the node's agent stuck?")
            if self._bell.poll(1000):
                self.control.quiet()
            elif self.gone():
                raise ServiceError("the node's agent is gone")

    def gone(self) -> bool:
        """Whether the agent is."""
        probe = select.poll()
        probe.register(self._socket, select.POLLHUP | select.POLLRDHUP)
        return bool(probe.poll(0))

    def close(self) -> None:
        """Let go of the memory."""
        self._socket.close()
        self.arena.close()
        if self.window:
            self.control.close()
            self.window.close()
            self._control_memory.close()


def _introduce(path: Path, hello: wire.Message) -> tuple[socket.socket, Any, list[int]]:
    """Connect and say hello; the connection, the agent's answer and the descriptors that came with it.

    ConfigError when the agent refuses, ServiceError when there is none that answers.
    """
    decoder = wire.Decoder(engine_wire.AgentToEngine)
    while True:
        sock = _connect(path)
        try:
            sock.settimeout(SEND_DEADLINE_S)
            send_message(sock, wire.encode(hello))
            body, fds = receive_message(sock, max_fds=_MAX_FDS)
            answer = decoder.decode(body)
        except (TransferError, OSError) as error:
            sock.close()
            raise ServiceError(f"the agent at {path} did not answer: {error}") from None
        except ProtocolError:
            sock.close()
            raise
        if isinstance(answer, engine_wire.EngineRefused):
            sock.close()
            raise ConfigError(f"the agent at {path} refuses this engine: {answer.message}")
        if not isinstance(answer, engine_wire.HelloAgain):
            return sock, answer, fds
        sock.close()
        time.sleep(0.05)


def _connect(path: Path) -> socket.socket:
    """The agent may start after us, or be restarting."""
    deadline_s = time.monotonic() + CONNECT_DEADLINE_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
            return sock
        except (FileNotFoundError, ConnectionRefusedError) as error:
            sock.close()
            if time.monotonic() > deadline_s:
                raise ServiceError(
                    f"no agent at {path} for {CONNECT_DEADLINE_S:g} s ({error}); is it running?"
                ) from None
            time.sleep(0.05)
