"""Brings blocks into the node's arena for a grant: from storage, from arenas that retain them, from other nodes."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from dualpath.core import wire
from dualpath.core.errors import BlockCorrupt, BlockMissing, StoreUnavailable, TransferError
from dualpath.core.report import NodeStats
from dualpath.node.arena import ARENA, Arena
from dualpath.node.grants import DecodeGrant, Grant
from dualpath.node.reader import ReadQueue
from dualpath.transport.base import Lane, LocalRanges, Range, RemoteRanges, Transport

log = logging.getLogger("dualpath.node")
COPY_BATCH_BYTES = 4 << 20  # of full blocks in one transfer
CAUSES = {
    BlockMissing: "missing block",
    BlockCorrupt: "corrupt block",
    StoreUnavailable: "store unavailable",
    TransferError: "transfer failed",
}


class Loader:
    """`send` takes messages to the scheduler. Cancelling a load, pull or fetch stops what it moves."""

    def __init__(
        self,
        arena: Arena,
        reader: ReadQueue,
        transport: Transport,
        stats: NodeStats,
        send: Callable[[wire.Message], None],
    ) -> None:
        self._arena = arena
        self._reader = reader
        self._transport = transport
        self._stats = stats
        self._send = send

    async def load(self, grant: Grant, reads: list[wire.ReadItem], retained: list[wire.RetainedItem]) -> None:
        """Bring in what the plan asks of this node, then say so; or fail, when all lost blocks are named.

        Late transfers under grants that had the slots before are waited for first.
        """
        await self._late_transfers(grant)
        futures = [self._reader.submit(grant.grant, r.slot, r.key) for r in reads]
        work = (self._fetch_retained(retained), *(self._advance(grant, read) for read in futures))
        errors = [e for e in await asyncio.gather(*work, return_exceptions=True) if e is not None]
        if not errors:
            self._send(wire.ReadsFinished(grant.grant, len(retained) * self._arena.layout.block_bytes))
        elif not grant.closing:
            self.fail(grant, errors[0])

    async def _late_transfers(self, grant: Grant) -> None:
        for earlier in grant.before:
            await self._transport.drained(ARENA, earlier)

    async def _advance(self, grant: Grant, read: asyncio.Future[int]) -> None:
        moved_bytes = await read
        grant.reads_left -= 1
        self._send(wire.ReadsAdvanced(grant.grant, 1, moved_bytes))

    async def _fetch_retained(self, items: list[wire.RetainedItem]) -> None:
        for item in items:
            if item.peer == self._transport.address:
                if not self._arena.holds(item.peer_grant, item.peer_slot):
                    raise TransferError(f"slot {item.peer_slot} is not grant {item.peer_grant}'s any more")
                self._arena.copy(item.peer_slot, item.slot)
            else:
                source = RemoteRanges(item.peer, ARENA, item.peer_grant, [self._arena.block_range(item.peer_slot)])
                into = LocalRanges(ARENA, [self._arena.block_range(item.slot)])
                await self._transport.fetch(source, into, lane=Lane.BLOCKS)
            self._stats.retained_bytes += self._arena.layout.block_bytes

    async def pull(self, grant: DecodeGrant) -> None:
        """Copy what the prefill node read, then say so."""
        await self._copy(grant, grant.peer, grant.pulls)
        self._send(wire.CopyFinished(grant.grant))

    async def fetch(self, grant: DecodeGrant, relay: str, pairs: list[tuple[int, int]]) -> None:
        """Copy what a third node read, then say so."""
        await self._copy(grant, relay, pairs)
        self._send(wire.FetchFinished(grant.grant))

    async def _copy(self, grant: DecodeGrant, peer: str, pairs: list[tuple[int, int]]) -> None:
        """Full blocks, in the background lane, once nobody else writes into the (own slot, peer's slot) pairs."""
        await self._late_transfers(grant)
        at_once = max(1, COPY_BATCH_BYTES // self._arena.layout.block_bytes)
        for start in range(0, len(pairs), at_once):
            own, theirs = zip(*pairs[start : start + at_once], strict=True)
            source = RemoteRanges(peer, ARENA, grant.grant, self._blocks(theirs))
            await self._transport.fetch(source, LocalRanges(ARENA, self._blocks(own)), lane=Lane.BLOCKS)

    def _blocks(self, slots: Sequence[int]) -> list[Range]:
        return [self._arena.block_range(slot) for slot in slots]

    def fail(self, grant: Grant, error: BaseException) -> None:
        """The attempt is over; said once. The cause is a few words that metrics can count by, the rest is logged."""
        if grant.failed:
            return
        grant.failed = True
        cause = next((words for kind, words in CAUSES.items() if isinstance(error, kind)), "internal error")
        if cause == "internal error":
            log.error("grant %d failed unexpectedly", grant.grant, exc_info=error)
        else:
            log.warning("grant %d: %s", grant.grant, error)
        self._send(wire.StepFailed(grant.grant, cause))
