"""The contract that every transport fulfils; `dualpath.testing.transport` is its executable form.

Every node runs one endpoint. It registers memories (the arena, an engine's KV window) as regions under a
name and serves peers' fetches from them and pushes into them. Ranges that name a grant are served only
while the owner says that the grant holds them: a late transfer can never touch a slot that was given to
somebody else.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from dualpath.core.errors import TransferError


class Lane(enum.IntEnum):
    """Traffic classes. Layer streams gate computation, so they go before background copies of full blocks."""

    LAYERS = 0  # layer blocks to a prefill engine, new KV to the decode node
    BLOCKS = 1  # full blocks between arenas


class Range(msgspec.Struct, frozen=True, array_like=True):
    """`length` bytes from `offset` on in a region."""

    offset: int
    length: int


class RemoteRanges(msgspec.Struct, frozen=True):
    """Ranges of a peer's region; `grant` is the generation under which the peer's owner handed them out."""

    peer: str  # address as published by the peer's endpoint
    region: str
    grant: int
    ranges: Sequence[Range]


class LocalRanges(msgspec.Struct, frozen=True):
    """Ranges of an own registered region."""

    region: str
    ranges: Sequence[Range]


Authorize = Callable[[int, Sequence[Range]], bool]
"""Asked with (grant, ranges) before a peer's transfer touches a region; False refuses with GrantExpired."""


class Unreachable(TransferError):
    """No connection to the peer could be had; nothing was moved."""


class Transport(Protocol):
    """One node's end of the compute network.

    Source and destination ranges pair up one to one, with equal lengths.
    """

    @property
    def address(self) -> str:
        """What peers put into RemoteRanges.peer; valid after start()."""

    async def start(self) -> None:
        """Listen."""

    def register(self, name: str, memory: memoryview, *, fd: int = -1, authorize: Authorize) -> None:
        """Make `memory` a region. `fd` is the memfd behind it, for transports that map peers' memory."""

    def unregister(self, name: str) -> None:
        """Forget a region; later transfers that name it fail with TransferError."""

    async def drained(self, name: str, grant: int) -> None:
        """Return when no peer's transfer that was authorized under `grant` touches the region any more.

        The owner first refuses the grant (authorize), then waits here, then gives the slots away. Every
        transfer has a deadline, so this ends.
        """

    async def fetch(self, source: RemoteRanges, into: LocalRanges, *, lane: Lane) -> None:
        """Copy the peer's ranges into ours. Returns when the bytes are here.

        ValueError when own ranges are wrong; TransferError when the transfer failed, and of its kind GrantExpired
        when the peer's owner refused the grant.
        """

    async def push(self, source: LocalRanges, into: RemoteRanges, *, lane: Lane) -> None:
        """Copy our ranges into the peer's. Returns when the peer has acknowledged them; errors as fetch."""

    def lane_bytes(self) -> dict[str, int]:
        """Bytes moved so far: keys "layers_out", "layers_in", "blocks_out", "blocks_in"; both ends count."""

    def kind_bytes(self) -> dict[str, int]:
        """The same bytes by what carried them: "shm", "tcp", "nixl"."""

    def fallbacks(self) -> dict[str, int]:
        """How often a kind could not connect to a peer, so that a lesser one was used; by the kind given up."""

    async def close(self) -> None:
        """Close all connections; transfers under way fail with TransferError on both sides."""
