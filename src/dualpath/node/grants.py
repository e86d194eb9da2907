"""What a node knows of the attempts that are open on it."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dualpath.core import wire
from dualpath.core.ids import EngineId

if TYPE_CHECKING:
    from dualpath.node.engines import EngineLink


@dataclass(eq=False)
class Grant:
    """The work that must end before the grant's slots may be given to others; all that a relay knows of it."""

    grant: int
    engine: EngineId | None = None  # a relay has none
    peer: str = ""  # transport address of the other side; a relay asks nobody
    link: "EngineLink | None" = None  # the engine's connection when the grant was opened; a later one knows nothing
    before: set[int] = field(default_factory=set)  # grants whose late transfers may still touch the slots
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    at_engine: bool = False  # the engine was told of it
    dropped: asyncio.Event = field(default_factory=asyncio.Event)  # the engine let go of it, or is gone
    streams: int = 0  # batches in flight through the window that carry it
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set while streams is 0
    reads_left: int = 0  # planned reads that the scheduler was not told of
    closing: bool = False  # it is being released
    failed: bool = False  # StepFailed was sent

    def __post_init__(self) -> None:
        self.idle.set()

    def stream_begins(self) -> None:
        """One batch more carries it."""
        self.streams += 1
        self.idle.clear()

    def stream_ends(self) -> None:
        """One batch fewer carries it."""
        self.streams -= 1
        if self.streams == 0:
            self.idle.set()


@dataclass(eq=False)
class PrefillGrant(Grant):
    """On the prefill node: where each block of the request lies."""

    local: dict[int, int] = field(default_factory=dict)  # block -> own slot
    peer_slots: list[int] = field(default_factory=list)  # block -> the decode node's slot


@dataclass(eq=False)
class DecodeGrant(Grant):
    """On the decode node: what to copy over from the prefill node when it is there."""

    pulls: list[tuple[int, int]] = field(default_factory=list)


def prefill_grant(message: wire.OpenPrefill) -> PrefillGrant:
    """The state of an OpenPrefill."""
    local = dict(zip(message.blocks, message.slots, strict=True))
    return PrefillGrant(message.grant, message.engine, message.peer, local=local, peer_slots=message.peer_slots)


def decode_grant(message: wire.OpenDecode) -> DecodeGrant:
    """The state of an OpenDecode."""
    return DecodeGrant(message.grant, message.engine, message.peer, pulls=message.pulls)
