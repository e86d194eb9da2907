"""The serving side of network tests: a transport's endpoint that peers' doctors measure against, and a bare port."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence

import msgspec

from dualpath.core.errors import ConfigError, TransferError
from dualpath.doctor.raw import MAX_TRANSFER_BYTES, RawServer
from dualpath.transport.base import Lane, LocalRanges, Range, RemoteRanges, Transport
from dualpath.transport.memory import SharedMemory
from dualpath.transport.open import open_transport

BLOCKS, CARD = "doctor-blocks", "doctor-card"  # regions
BLOCKS_BYTES = 8 * MAX_TRANSFER_BYTES
CARD_BYTES = 4096
CARD_VERSION = 1
GRANT = 1
DEADLINE_S = 20.0


class Card(msgspec.Struct, frozen=True):
    """What a serving doctor says of itself, at the start of its card region; zeros follow."""

    version: int
    host: str
    raw_host: str
    raw_port: int
    raw_token: bytes


class Endpoint:
    """A started transport with memory to copy from and into. An async context manager."""

    def __init__(self, kind: str, host: str, key: bytes | None, size_bytes: int = BLOCKS_BYTES) -> None:
        self.transport: Transport = open_transport(kind, host=host, deadline_s=DEADLINE_S, key=key)
        self._size_bytes = size_bytes

    async def __aenter__(self) -> "Endpoint":
        self._ends = contextlib.AsyncExitStack()
        self.blocks = self._ends.enter_context(SharedMemory.create(self._size_bytes, name="dualpath-doctor"))
        self.card = self._ends.enter_context(SharedMemory.create(CARD_BYTES, name="dualpath-doctor"))
        self._ends.push_async_callback(self.transport.close)
        try:
            self.transport.register(BLOCKS, self.blocks.view, fd=self.blocks.fd, authorize=authorize)
            self.transport.register(CARD, self.card.view, fd=self.card.fd, authorize=authorize)
            await self.transport.start()
        except BaseException:
            await self._ends.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._ends.aclose()

    async def read_card(self, peer: str) -> Card:
        """Ask a serving doctor who it is; TransferError when it does not answer, or is none."""
        whole = [Range(0, CARD_BYTES)]
        await self.transport.fetch(RemoteRanges(peer, CARD, GRANT, whole), LocalRanges(CARD, whole), lane=Lane.BLOCKS)
        try:
            card = msgspec.json.decode(bytes(self.card.view).rstrip(b"\0"), type=Card)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TransferError(f"{peer} does not serve dualpath doctor: {error}") from None
        if card.version != CARD_VERSION:
            raise TransferError(f"{peer} serves version {card.version} of doctor's test, not {CARD_VERSION}")
        return card

    def write_card(self, card: Card) -> None:
        """Say who we are."""
        content = msgspec.json.encode(card)
        self.card.view[: len(content)] = content


def authorize(grant: int, ranges: Sequence[Range]) -> bool:
    """Doctor's memory is for all who may speak to its endpoint."""
    return grant == GRANT


async def serve(kind: str, host: str, key: bytes | None, seconds: float) -> None:
    """Print our address, and serve peers' doctors for so long, or until cancelled. ConfigError: cannot listen."""
    async with Endpoint(kind, host, key) as endpoint:
        try:
            raw = RawServer(host)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}: {error.strerror}; give this host's own address") from None
        try:
            endpoint.write_card(Card(CARD_VERSION, socket.gethostname(), host, raw.port, raw.token))
            print(endpoint.transport.address, flush=True)
            await asyncio.sleep(seconds)
        finally:
            raw.close()
