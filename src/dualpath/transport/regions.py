"""Registered memory of an endpoint: lookup, bounds, grants, and which peers' transfers are under way."""

import asyncio
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dualpath.core.errors import ConfigError, GrantExpired, TransferError
from dualpath.transport.base import Authorize, LocalRanges, Range
from dualpath.transport.wire import MAX_RANGES, MAX_TRANSFER_BYTES, total_bytes


class Region:
    """Registered memory. `identity` is new for every registration, so that a peer knows a stale mapping."""

    def __init__(self, memory: memoryview, fd: int, authorize: Authorize) -> None:
        self.memory = memory.cast("B")
        self.fd = os.dup(fd) if fd >= 0 else -1  # so that it is still this file when a peer asks for it
        self.identity = secrets.randbits(62) + 1
        self._authorize = authorize
        self._under_way: dict[int, int] = {}  # grant -> peers' transfers
        self._drained: dict[int, asyncio.Event] = {}

    def check(self, grant: int, ranges: Sequence[Range]) -> None:
        """TransferError when ranges lie outside; GrantExpired when the owner refuses the grant."""
        if not within(ranges, len(self.memory)):
            raise TransferError(f"ranges outside of the region's {len(self.memory)} bytes")
        if not self._authorize(grant, ranges):
            raise GrantExpired(f"grant {grant} does not hold these ranges (any more)")

    @contextmanager
    def use(self, grant: int) -> Iterator[None]:
        """Mark a peer's transfer as under way."""
        self._under_way[grant] = self._under_way.get(grant, 0) + 1
        try:
            yield
        finally:
            self._under_way[grant] -= 1
            if not self._under_way[grant]:
                del self._under_way[grant]
                self._drained.pop(grant, asyncio.Event()).set()

    def close(self) -> None:
        """Give up the descriptor; transfers under way keep the memory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def drained(self, grant: int) -> None:
        """Return when no peer's transfer under this grant is under way."""
        if grant in self._under_way:
            await self._drained.setdefault(grant, asyncio.Event()).wait()


class Regions:
    """The regions of one endpoint, by name."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def add(self, name: str, memory: memoryview, fd: int, authorize: Authorize) -> None:
        """ConfigError for a name in use, memory that transfers cannot write, or a file smaller than the
        memory.
        """
        if not 1 <= len(name) <= 255 or name in self._regions:
            raise ConfigError(f"region name {name!r} is in use, empty or too long; choose another")
        if memory.readonly or not memory.c_contiguous:
            raise ConfigError(f"region {name!r} must be writable, contiguous memory")
        if fd >= 0 and os.fstat(fd).st_size < memory.nbytes:
            raise ConfigError(f"the file behind region {name!r} is smaller than the region's {memory.nbytes} bytes")
        self._regions[name] = Region(memory, fd, authorize)

    def remove(self, name: str) -> None:
        """Forget a region; nothing happens when it is not there."""
        if name in self._regions:
            self._regions.pop(name).close()

    def clear(self) -> None:
        """Forget all regions."""
        for name in list(self._regions):
            self.remove(name)

    def find(self, name: str) -> Region:
        """TransferError when there is no such region."""
        try:
            return self._regions[name]
        except KeyError:
            raise TransferError(f"no region {name!r} is registered") from None

    def own_memory(self, own: LocalRanges, theirs: Sequence[Range]) -> memoryview:
        """Memory of the caller's own ranges; ValueError when they do not fit it, or not the peer's ranges."""
        memory = self.find(own.region).memory
        if [r.length for r in theirs] != [r.length for r in own.ranges]:
            raise ValueError("source and destination ranges must pair up with equal lengths")
        if not 1 <= len(own.ranges) <= MAX_RANGES or total_bytes(own.ranges) > MAX_TRANSFER_BYTES:
            raise ValueError(
                f"a transfer has 1 to {MAX_RANGES} ranges and at most {MAX_TRANSFER_BYTES} bytes: split it"
            )
        if not within(own.ranges, len(memory)):
            raise ValueError(f"ranges outside of the own region {own.region!r} of {len(memory)} bytes, or empty")
        return memory

    async def drained(self, name: str, grant: int) -> None:
        """Return when no peer's transfer into or from the region under this grant is under way."""
        if name in self._regions:
            await self._regions[name].drained(grant)


class Cursor:
    """Walks over ranges of a memory; `take` yields views of its next bytes, without copying."""

    def __init__(self, memory: memoryview, ranges: Sequence[Range]) -> None:
        self._memory = memory
        self._ranges = ranges
        self._index = 0
        self._done = 0  # bytes of the current range

    def take(self, count: int) -> list[memoryview]:
        """Views of the next `count` bytes, which must be there."""
        views = []
        while count:
            current = self._ranges[self._index]
            start = current.offset + self._done
            size = min(count, current.length - self._done)
            views.append(self._memory[start : start + size])
            count -= size
            self._done += size
            if self._done == current.length:
                self._index, self._done = self._index + 1, 0
        return views


def coalesce(ranges: Sequence[Range]) -> list[Range]:
    """The same bytes in the same order, in as few ranges as possible."""
    merged: list[Range] = []
    for current in ranges:
        if merged and merged[-1].offset + merged[-1].length == current.offset:
            merged[-1] = Range(merged[-1].offset, merged[-1].length + current.length)
        else:
            merged.append(current)
    return merged


def within(ranges: Sequence[Range], size_bytes: int) -> bool:
    """Whether all ranges have bytes and lie inside a memory of this size."""
    return all(r.offset >= 0 and r.length > 0 and r.offset + r.length <= size_bytes for r in ranges)
