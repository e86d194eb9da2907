"""The storage queue of a node, seen from outside: requests first in, first out, at what NIC and latency allow.

As the node agent's reader it keeps `concurrency` blocks under way, so the next request's first blocks are asked for
while the last ones of the one before arrive: the NIC never idles between requests, and only a request that finds the
queue idle waits for the latency. Writes queue the same way.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from dualpath.sim.kernel import Kernel
from dualpath.sim.network import Flow, Link, Network


class _Read:
    __slots__ = ("args", "flow", "grant", "left", "on_done", "on_progress", "ready_ns")

    def __init__(
        self,
        grant: int,
        blocks: int,
        ready_ns: int,
        on_progress: Callable[..., Any] | None,
        on_done: Callable[..., Any] | None,
        args: tuple[Any, ...],
    ) -> None:
        self.grant = grant
        self.left = blocks
        self.ready_ns = ready_ns  # its first block can be there no sooner
        self.on_progress = on_progress
        self.on_done = on_done
        self.args = args
        self.flow: Flow | None = None


class ReadQueue:
    """Moves blocks of `block_bytes` over `links`, one message each; of at most `concurrency` blocks at a time each is
    under way for `latency_ns` at least. Progress is told every `progress_blocks` (0: only at a request's end).
    """

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        links: tuple[Link, ...],
        *,
        block_bytes: float,
        latency_ns: int = 0,
        concurrency: int = 1,
        progress_blocks: int = 0,
    ) -> None:
        if not (block_bytes > 0 and latency_ns >= 0 and concurrency > 0 and progress_blocks >= 0):
            raise ValueError("a storage queue needs a block size and a concurrency; latency and progress are 0 or more")
        self._kernel = kernel
        self._network = network
        self._links = links
        self._most_bytes_per_s = concurrency * block_bytes / latency_ns * 1e9 if latency_ns else float("inf")
        self._block_bytes = block_bytes
        self._latency_ns = latency_ns
        self._progress_blocks = progress_blocks
        self._waiting: deque[_Read] = deque()
        self._serving: _Read | None = None
        self._queued_blocks = 0
        self._bytes_moved = 0.0
        self._busy_ns = 0
        self._busy_since_ns = 0

    @property
    def queued_blocks(self) -> int:
        """Blocks that wait or are on their way."""
        return self._queued_blocks - int(self._moving() / self._block_bytes)

    @property
    def bytes_moved(self) -> float:
        """Bytes that have arrived, up to now."""
        return self._bytes_moved + self._moving()

    @property
    def busy_ns(self) -> int:
        """Time in which any request waited or was served, up to now."""
        return self._busy_ns + (self._kernel.now_ns - self._busy_since_ns if self._serving else 0)

    def submit(
        self,
        grant: int,
        blocks: int,
        on_progress: Callable[..., Any] | None,
        on_done: Callable[..., Any] | None,
        args: tuple[Any, ...] = (),
    ) -> None:
        """Queue a request's blocks. Calls on_progress(more blocks, *args) as they arrive, then on_done(*args)."""
        if blocks < 0:
            raise ValueError(f"grant {grant} asks storage for {blocks} blocks")
        ready_ns = self._kernel.now_ns + self._latency_ns
        self._queued_blocks += blocks
        self._waiting.append(_Read(grant, blocks, ready_ns, on_progress, on_done, args))
        if self._serving is None:
            self._busy_since_ns = self._kernel.now_ns
            self._next()

    def cancel(self, grant: int) -> None:
        """Drop what the grant has queued, the rest of what is being served too; nobody is called for it any more."""
        self._queued_blocks -= sum(read.left for read in self._waiting if read.grant == grant)
        self._waiting = deque(read for read in self._waiting if read.grant != grant)
        read = self._serving
        if read is not None and read.grant == grant:
            self._bytes_moved += self._moving()
            self._queued_blocks -= read.left
            if read.flow is not None:
                self._network.cancel(read.flow)
            self._next()

    def _next(self) -> None:
        if not self._waiting:
            self._serving = None
            self._busy_ns += self._kernel.now_ns - self._busy_since_ns
            return
        self._serving = read = self._waiting.popleft()
        if read.ready_ns > self._kernel.now_ns:
            self._kernel.at(read.ready_ns, self._move, read)
        else:
            self._move(read)

    def _move(self, read: _Read) -> None:
        """Bring its next blocks, unless it was cancelled while it waited for the first."""
        if read is self._serving:
            blocks = min(self._progress_blocks or read.left, read.left)
            read.flow = self._network.send(
                self._links, blocks * self._block_bytes, self._moved, read, blocks,
                messages=blocks, most_bytes_per_s=self._most_bytes_per_s,
            )  # fmt: skip

    def _moved(self, read: _Read, blocks: int) -> None:
        self._bytes_moved += blocks * self._block_bytes
        self._queued_blocks -= blocks
        read.left -= blocks
        read.flow = None
        if read.on_progress is not None and blocks:
            read.on_progress(blocks, *read.args)
        if read is not self._serving:  # cancelled by whom that told
            return
        if read.left:
            self._move(read)
            return
        self._next()
        if read.on_done is not None:
            read.on_done(*read.args)

    def _moving(self) -> float:
        flow = self._serving.flow if self._serving else None
        return self._network.moved_bytes(flow) if flow is not None else 0.0
