"""Messages around a NIXL write, on the connection of its request.

The owner of the memory to be written sends a Target, once the grant stands; then, where its NIC is throttled, a TICK
for each piece that has passed; and STOP when it wants the writer to end early. The writer sends an End.
"""

from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec

from dualpath.core.errors import ProtocolError
from dualpath.transport.base import Range
from dualpath.transport.nixl_agent import Write
from dualpath.transport.wire import MAX_RANGES

TICK = b"t"
STOP = b"x"


class Target(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where to write."""

    agent: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]  # NIXL's name of the owner
    registration: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    address: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # of the region's first byte
    paced: bool  # wait for a TICK before each piece
    metadata: Annotated[bytes, msgspec.Meta(max_length=65_536)]  # what NIXL must know of the registration
    ranges: Annotated[tuple[Range, ...], msgspec.Meta(max_length=MAX_RANGES)] = ()  # of a fetch; a push's are known


class End(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The writer will write no more. `clean`: nor is anything of it still on its way."""

    clean: bool
    error: str = ""  # empty: all bytes are there


_Message = TypeVar("_Message", Target, End)


def encode(message: Target | End) -> bytes:
    """The body of a message."""
    return msgspec.msgpack.encode(message)


def decode(body: bytes, kind: type[_Message]) -> _Message:
    """Inverse of encode; ProtocolError for anything else."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message about a NIXL write: {error}") from None


def pair_up(source_address: int, source: Sequence[Range], target_address: int, target: Sequence[Range]) -> list[Write]:
    """The writes that copy source to target ranges, in as few as possible; ProtocolError when lengths differ."""
    if [r.length for r in source] != [r.length for r in target]:
        raise ProtocolError("a target whose ranges do not pair up with the request's")
    writes: list[Write] = []
    for ours, theirs in zip(source, target, strict=True):
        here, there, length = source_address + ours.offset, target_address + theirs.offset, ours.length
        last = writes[-1] if writes else None
        if last and (last.source + last.length, last.target + last.length) == (here, there):
            writes[-1] = Write(last.source, last.target, last.length + length)
        else:
            writes.append(Write(here, there, length))
    return writes


class WriteCursor:
    """Walks over writes; `take` gives what makes up the next bytes."""

    def __init__(self, writes: Sequence[Write]) -> None:
        self._writes = writes
        self._index = 0
        self._done = 0  # bytes of the current write

    def take(self, count: int) -> list[Write]:
        """Writes of the next `count` bytes, which must be there."""
        taken = []
        while count:
            current = self._writes[self._index]
            size = min(count, current.length - self._done)
            taken.append(Write(current.source + self._done, current.target + self._done, size))
            count -= size
            self._done += size
            if self._done == current.length:
                self._index, self._done = self._index + 1, 0
        return taken
