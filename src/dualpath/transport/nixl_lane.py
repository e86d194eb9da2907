"""A lane's NIXL agent and the thread that works it, as seen from the event loop.

UCX moves bytes only while somebody polls it, at both ends of a write. The thread polls while own writes are under
way or a peer's are awaited, and sleeps otherwise, so an idle endpoint costs nothing.
"""

import asyncio
import logging
import queue
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from dualpath.core.errors import ConfigError, DualPathError, TransferError
from dualpath.transport.nixl_agent import NixlAgent, Write
from dualpath.transport.nixl_wire import Target

_BUSY_NS = 20_000  # a poll that took longer moved bytes
_SHORT_PAUSES = 10  # polls without work before pauses become long
_SHORT_PAUSE_S = 10e-6  # never none: the event loop needs Python's lock
_LONG_PAUSE_S = 150e-6
_CLOSE_S = 5
_log = logging.getLogger(__name__)


class NixlLane:
    """Methods belong to one event loop; those whose names begin with _t_ run in the thread."""

    def __init__(self, settings: str, mark_sockets: Callable[[], None]) -> None:
        self._settings = settings
        self._mark_sockets = mark_sockets
        # Not SimpleQueue: a get() with a short timeout may miss it and block for ever.
        self._commands: queue.Queue[Callable[[], None]] = queue.Queue()
        self._thread = threading.Thread(target=self._t_run, name="nixl-lane", daemon=True)
        self._open = False
        self._awaited = 0  # peers' writes
        self._users: dict[int, int] = {}  # registration -> transfers
        self._leaving: set[int] = set()  # registrations to end after their last user
        self._described: dict[int, tuple[str, bytes]] = {}
        self._loaded: set[tuple[str, int]] = set()  # peers' agents and registrations
        self._peers: weakref.WeakKeyDictionary[socket.socket, str] = weakref.WeakKeyDictionary()
        # Of the thread:
        self._memories: dict[int, np.ndarray] = {}
        self._agent: NixlAgent | None = None
        self._writes: dict[int, tuple[str, asyncio.Future[None]]] = {}

    async def start(self) -> None:
        """Make the agent; ConfigError when UCX cannot work with the settings."""
        self._thread.start()
        self._open = True
        try:
            await self._ask(self._t_live)
        except TransferError as error:
            raise ConfigError(f"{error}; is the address a NIC's own, and no UCX_* variable in the way?") from None

    async def close(self) -> None:
        """End the agent: no peer writes into this process through this lane any more."""
        if not self._open:
            self._memories.clear()
            return
        ended = self._ask(self._t_close)
        self._open = False
        await asyncio.wait([ended], timeout=_CLOSE_S)

    def register(self, number: int, memory: memoryview) -> None:
        """Let a region take part; ConfigError when the NIC cannot register it."""
        array = np.frombuffer(memory, np.uint8)
        if not self._open:
            self._memories[number] = array
            return
        done: queue.SimpleQueue[DualPathError | None] = queue.SimpleQueue()
        self._commands.put(partial(self._t_register, number, array, done))
        if error := done.get():
            raise ConfigError(f"{error}; is the limit on locked memory (ulimit -l) too small?")

    def unregister(self, number: int) -> None:
        """End a registration as soon as no transfer uses it."""
        self._described.pop(number, None)
        if number in self._users:
            self._leaving.add(number)
        elif self._open:
            self._commands.put(partial(self._t_unregister, number))
        else:
            self._memories.pop(number, None)

    @contextmanager
    def use(self, number: int, *, awaited: bool) -> Iterator[None]:
        """Keep a registration during a transfer; `awaited`: it is the peer that writes, so poll."""
        self._users[number] = self._users.get(number, 0) + 1
        self._awaited += awaited
        self._commands.put(_nothing)
        try:
            yield
        finally:
            self._awaited -= awaited
            self._users[number] -= 1
            if not self._users[number]:
                del self._users[number]
                if number in self._leaving:
                    self._leaving.discard(number)
                    self.unregister(number)

    async def describe(self, number: int) -> tuple[str, bytes]:
        """The agent's name, and what a peer must know to write into the registration."""
        if number not in self._described:
            self._described[number] = await self._ask(self._t_describe, number)
        return self._described[number]

    async def load(self, sock: socket.socket, target: Target) -> None:
        """Connect to the owner of a target named on this connection; TransferError when UCX cannot reach it.

        Forgets owners all of whose connections have ended.
        """
        key = target.agent, target.registration
        if key in self._loaded:
            return
        self._peers[sock] = target.agent
        alive = {agent for connection, agent in self._peers.items() if connection.fileno() >= 0}
        for peer in {agent for agent, _ in self._loaded} - alive:
            await self.drop(peer)
        await self._ask(self._t_load, target.metadata)
        self._loaded.add(key)

    def write(self, writes: Sequence[Write], source: int, target: Target) -> asyncio.Future[None]:
        """Begin writes; the future ends when the peer has all bytes, or with TransferError."""
        future = self._future()
        future.add_done_callback(_seen)
        self._commands.put(partial(self._t_post, future, writes, source, target))
        return future

    async def drop(self, peer: str) -> None:
        """Give up all writes to a peer's agent and disconnect from it."""
        self._loaded = {(agent, number) for agent, number in self._loaded if agent != peer}
        if self._open:
            await self._ask(self._t_drop, peer)

    async def reset(self) -> None:
        """Replace the agent: what peers have under way into our memory can land no more, and ours fails."""
        if self._open:
            await self._ask(self._t_reset)
        self._described.clear()
        self._loaded.clear()

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        future = self._future()
        self._commands.put(partial(_answer, future, function, arguments))
        return future

    def _future(self) -> asyncio.Future[Any]:
        if not self._open:
            raise TransferError("this endpoint is not open")
        return asyncio.get_running_loop().create_future()

    # The thread.

    def _t_run(self) -> None:
        idle_polls = 0
        while True:
            busy = bool(self._writes) or self._awaited > 0
            pause_s = None if not busy else _LONG_PAUSE_S if idle_polls > _SHORT_PAUSES else _SHORT_PAUSE_S
            try:
                command = self._commands.get(timeout=pause_s)
            except queue.Empty:
                began_ns = time.monotonic_ns()
                self._t_poll()
                idle_polls = 0 if time.monotonic_ns() - began_ns > _BUSY_NS else idle_polls + 1
            else:
                idle_polls = 0
                command()
                if command is _END:
                    return

    def _t_poll(self) -> None:
        """Let UCX work, and tell of the writes that have ended."""
        try:
            self._t_live().progress()
        except DualPathError as error:
            _log.warning("%s", error)
        for handle, (_, future) in list(self._writes.items()):
            try:
                if not self._t_live().done(handle):
                    continue
                failure = None
            except DualPathError as error:
                failure = error
            self._t_end(handle)
            _deliver(future, None, failure)

    def _t_live(self) -> NixlAgent:
        """The agent; a new one when there is none."""
        if self._agent is None:
            agent = NixlAgent(self._settings)
            for number, memory in self._memories.items():
                agent.register(number, memory.ctypes.data, memory.nbytes)
            self._agent = agent
            self._mark_sockets()
        return self._agent

    def _t_register(self, number: int, memory: np.ndarray, done: "queue.SimpleQueue[DualPathError | None]") -> None:
        try:
            self._t_live().register(number, memory.ctypes.data, memory.nbytes)
            self._memories[number] = memory
            done.put(None)
        except DualPathError as error:
            done.put(error)

    def _t_unregister(self, number: int) -> None:
        if self._memories.pop(number, None) is not None and self._agent:
            self._agent.unregister(number)

    def _t_describe(self, number: int) -> tuple[str, bytes]:
        if number not in self._memories:
            raise TransferError("the region was unregistered")
        agent = self._t_live()
        return agent.name, agent.describe(number)

    def _t_post(self, future: asyncio.Future[None], writes: Sequence[Write], source: int, target: Target) -> None:
        try:
            handle = self._t_live().post(writes, source, target.agent, target.registration)
        except DualPathError as error:
            _deliver(future, None, error)
        else:
            self._writes[handle] = target.agent, future

    def _t_load(self, metadata: bytes) -> None:
        self._t_live().load(metadata)
        self._mark_sockets()

    def _t_drop(self, peer: str) -> None:
        try:
            self._t_live().drop(peer)
        except TransferError as error:
            _log.debug("%s", error)  # it was not connected
        self._t_fail([handle for handle, (agent, _) in self._writes.items() if agent == peer], "its peer was given up")

    def _t_reset(self) -> None:
        self._t_fail(list(self._writes), "the lane was reset, as another peer of it was lost in the middle of a write")
        if self._agent:
            self._agent.close()
        self._agent = None

    def _t_close(self) -> None:
        self._t_reset()
        self._memories.clear()
        self._commands.put(_END)

    def _t_fail(self, handles: Sequence[int], why: str) -> None:
        for handle in handles:
            _, future = self._writes[handle]
            self._t_end(handle)
            _deliver(future, None, TransferError(f"a write ended early: {why}"))

    def _t_end(self, handle: int) -> None:
        del self._writes[handle]
        try:
            self._t_live().release(handle)
        except TransferError as error:
            _log.debug("%s", error)


def _answer(future: asyncio.Future[Any], function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        result = function(*arguments)
    except DualPathError as error:
        _deliver(future, None, error)
    else:
        _deliver(future, result, None)


def _deliver(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    """Resolve a future of the event loop from the thread."""

    def resolve() -> None:
        if future.done():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)

    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(resolve)


def _seen(future: asyncio.Future[None]) -> None:
    """A write whose transfer has failed already is nobody's any more."""
    if not future.cancelled():
        future.exception()


def _nothing() -> None:
    """Wakes the thread."""


def _END() -> None:
    """Ends the thread."""
