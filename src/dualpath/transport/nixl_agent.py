"""A NIXL agent with the UCX backend, for WRITEs between registered host memories. Belongs to one thread.

NIXL and UCX check nothing of who writes where: over TCP a peer's write lands wherever it says. Whether a write may
happen at all is agreed upon before, over an authenticated connection (transport.nixl).
"""

import logging
import secrets
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dualpath.core.errors import ConfigError, TransferError


class Write(NamedTuple):
    """Bytes to copy from an own address to a peer's."""

    source: int
    target: int
    length: int


def address_of(memory: memoryview) -> int:
    """Where the memory begins."""
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def bindings() -> ModuleType:
    """NIXL's own bindings; ConfigError when they are not installed.

    Importing them changes the process's logging; that is put back.
    """
    raises = logging.raiseExceptions
    try:
        import nixl_cu12._bindings as nixl  # the wrapper above it has no way to give UCX settings per agent
    except ImportError as error:
        raise ConfigError(f"transport nixl needs NIXL ({error}); pip install --no-deps nixl-cu12==1.5.1") from None
    finally:
        logging.raiseExceptions = raises
    return nixl


class NixlAgent:
    """One NIXL agent. Its name is new with every agent, so that what a peer knew of an earlier one is never used.

    Every registration has a number, which NIXL keeps as the memory's device: it tells apart registrations of the
    same address. All methods raise TransferError with NIXL's reason.
    """

    def __init__(self, settings: str) -> None:
        self.name = secrets.token_hex(12)
        self._nixl = bindings()
        self._registered: dict[int, Any] = {}
        config = self._nixl.nixlAgentConfig()
        config.useProgThread = False  # it would spin a core
        config.useListenThread = False
        self._agent = self._nixl.nixlAgent(self.name, config)
        self._ucx = [self._call("start UCX with " + settings, self._create, settings)]

    def register(self, number: int, address: int, length: int) -> None:
        """Let this memory take part in transfers, under this number."""
        memory = self._nixl.nixlRegDList(self._nixl.DRAM_SEG, [(address, length, number, "")])
        self._call("register memory", self._agent.registerMem, memory, self._ucx)
        self._registered[number] = memory

    def unregister(self, number: int) -> None:
        """Undo register()."""
        self._call("unregister memory", self._agent.deregisterMem, self._registered.pop(number), self._ucx)

    def describe(self, number: int) -> bytes:
        """What a peer must load to write into this registration."""
        return bytes(
            self._call("describe memory", self._agent.getLocalPartialMD, self._registered[number], True, self._ucx)
        )

    def load(self, metadata: bytes) -> None:
        """Learn a peer's registration, and connect to the peer when it is new."""
        self._call("reach the peer", self._agent.loadRemoteMD, metadata)

    def drop(self, peer: str) -> None:
        """Disconnect from a peer and forget it."""
        self._call("drop the peer", self._agent.invalidateRemoteMD, peer)

    def post(self, writes: Sequence[Write], source: int, peer: str, target: int) -> int:
        """Begin writes from registration `source` into the peer's `target`; returns a handle to poll."""
        sources = self._call("list memory", self._descriptors, [(w.source, w.length, source) for w in writes])
        targets = self._call("list memory", self._descriptors, [(w.target, w.length, target) for w in writes])
        write = self._nixl.NIXL_WRITE
        handle = int(
            self._call("prepare a write", self._agent.createXferReq, write, sources, targets, peer, "", self._ucx)
        )
        try:
            self._call("write to the peer", self._agent.postXferReq, handle)
        except TransferError:
            self.release(handle)
            raise
        return handle

    def done(self, handle: int) -> bool:
        """Whether the peer has all bytes of the handle."""
        status = self._call("write to the peer", self._agent.getXferStatus, handle)
        return bool(status == self._nixl.NIXL_SUCCESS)

    def release(self, handle: int) -> None:
        """Give up a handle. Of one that is not done, bytes may still move until the peer's agent has ended."""
        self._call("release a write", self._agent.releaseXferReq, handle)

    def progress(self) -> None:
        """Let UCX work: both ends of a write must."""
        self._call("work", self._agent.getNotifs, {}, self._ucx)

    def close(self) -> None:
        """End all connections: from here on no peer writes into this process through this agent."""
        self._registered.clear()
        self._agent = None  # its destructor, in this thread

    def _descriptors(self, rows: Sequence[tuple[int, int, int]]) -> Any:
        return self._nixl.nixlXferDList(self._nixl.DRAM_SEG, np.array(rows, np.uint64))

    def _create(self, settings: str) -> int:
        if "UCX" not in self._agent.getAvailPlugins():
            raise RuntimeError("NIXL has no UCX plug-in")
        return int(self._agent.createBackend("UCX", {"engine_config": settings}))

    def _call(self, what: str, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:  # NIXL's have no base of their own; and none may end the lane's thread
            raise TransferError(f"NIXL could not {what}: {type(error).__name__} {error}") from None
