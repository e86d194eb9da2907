"""The node agent: carries out what the scheduler assigned to its node, and speaks for the node's engines.

One asyncio loop. Messages from the scheduler and from engines are handled at once; what takes time runs as a task that
belongs to a grant, so that a Release can wait until nothing touches the grant's slots any more.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import singledispatchmethod
from typing import Any

from dualpath.core import wire
from dualpath.core.config import Config
from dualpath.core.errors import BlockCorrupt, BlockMissing, ProtocolError, StoreUnavailable, TransferError
from dualpath.core.ids import EngineId
from dualpath.core.model import ModelSpec
from dualpath.core.report import NodeStats, Role
from dualpath.node.arena import ARENA, Arena
from dualpath.node.engines import EngineLink, EngineServer
from dualpath.node.grants import DecodeGrant, Grant, PrefillGrant, decode_grant, prefill_grant
from dualpath.node.reader import RateMeter, ReadQueue
from dualpath.node.stream import LayerStream
from dualpath.node.writer import WriteQueue
from dualpath.store.base import Store
from dualpath.transport.base import Lane, LocalRanges, Range, RemoteRanges, Transport
from dualpath.transport.nic import NicPair

log = logging.getLogger("dualpath.node")
COPY_BATCH_BYTES = 4 << 20  # of full blocks in one transfer
DROP_DEADLINE_S = 60.0  # for an engine to let go of a grant: longer than its longest step


class Agent:
    """`send` takes messages to the scheduler, in order and without waiting."""

    def __init__(
        self,
        config: Config,
        spec: ModelSpec,
        stats: NodeStats,
        store: Store,
        transport: Transport,
        nics: NicPair,
        send: Callable[[wire.Message], None],
    ) -> None:
        self.stats = stats
        self._config = config
        self._layout = spec.layout
        self._store = store
        self._transport = transport
        self._nics = nics
        self._send = send
        self._grants: dict[int, Grant] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._opened = 0
        self.arena = Arena(spec.layout, config.arena_bytes)
        self.write_slots = max(1, int(self.arena.slots * config.storage.write_share))
        deadline_s = config.limits.read_deadline_s
        self.reader = ReadQueue(
            store, self.arena, stats, concurrency=config.storage.read_concurrency, deadline_s=deadline_s
        )
        self.writer = WriteQueue(
            store, self.arena, stats, self._written, bound=self.write_slots,
            concurrency=config.storage.write_concurrency, deadline_s=deadline_s,
        )  # fmt: skip
        self.engines = EngineServer(
            config.agent_socket(stats.node), stats.role, spec.layout, self.arena, self._new_stream, self._attached,
            self._from_engine_safely,
        )  # fmt: skip
        self.rate = RateMeter(0.0)
        transport.register(ARENA, self.arena.view, fd=self.arena.memory.fd, authorize=self._authorize)

    def _authorize(self, grant: int, ranges: Any) -> bool:
        allowed = self.arena.authorize(grant, ranges)
        self.stats.grants_refused += not allowed
        return allowed

    def hello(self, address: str) -> wire.NodeHello:
        """How the node presents itself."""
        return wire.NodeHello(
            wire.PROTOCOL_VERSION, self.stats.node, self.stats.role, self._layout, address, self.arena.slots,
            self.write_slots, self.rate.bytes_per_s,
        )  # fmt: skip

    def announce_engines(self) -> None:
        """Tell a scheduler that just took us in which engines are attached."""
        for link in self.engines.links.values():
            self._announce(link)

    def report(self) -> wire.NodeReport:
        """The heartbeat."""
        self.rate.update(self.stats.read_bytes, self.reader.busy_ns())
        self.stats.read_rate_bytes_per_s = self.rate.bytes_per_s
        self.stats.lane_bytes = self._transport.lane_bytes()
        return wire.NodeReport(self.stats, [link.stats for link in self.engines.links.values()], self._opened)

    async def reset(self) -> None:
        """The scheduler forgot us: end all attempts, so that engines and slots are free for new ones."""
        await asyncio.gather(*(self._let_go(grant) for grant in list(self._grants.values())))
        self._opened = 0

    # from the scheduler ------------------------------------------------------------------------------------------

    @singledispatchmethod
    def on_message(self, message: wire.Message) -> None:
        """Carry out a message of the scheduler."""
        raise ProtocolError(f"{type(message).__name__} is not for an agent")

    @on_message.register
    def _open_prefill(self, message: wire.OpenPrefill) -> None:
        grant = self._open(prefill_grant(message), message.slots)
        if message.reads:
            self._run(grant, self._load(grant, message.reads, []))

    @on_message.register
    def _open_decode(self, message: wire.OpenDecode) -> None:
        grant = self._open(decode_grant(message), message.slots)
        self._run(grant, self._load(grant, message.reads, message.retained))

    def _open(self, grant: Grant, slots: list[int]) -> Grant:
        self._opened += 1
        self._grants[grant.grant] = grant
        self.arena.open(grant.grant, slots)
        return grant

    @on_message.register
    def _start_pull(self, message: wire.StartPull) -> None:
        grant = self._grants.get(message.grant)
        if isinstance(grant, DecodeGrant):
            self._run(grant, self._pull(grant))

    @on_message.register
    def _persist(self, message: wire.Persist) -> None:
        for item in message.items:
            if not self.writer.enqueue(item):
                self._send(wire.BlockWritten(item.slot, item.key, durable=False))

    @on_message.register
    def _start_prefill(self, message: wire.StartPrefill) -> None:
        self._to_engine(message)

    @on_message.register
    def _start_decode(self, message: wire.StartDecode) -> None:
        self._to_engine(message)

    def _to_engine(self, message: wire.StartPrefill | wire.StartDecode) -> None:
        grant, link = self._grants.get(message.grant), self.engines.links.get(message.engine)
        if grant and link:  # otherwise EngineLost is on its way to the scheduler, or Release on its way to us
            grant.at_engine = True
            link.send(message)

    @on_message.register
    def _release(self, message: wire.Release) -> None:
        grant = self._grants.get(message.grant)
        if grant is None:
            self._send(wire.Released(message.grant))
        else:
            self._spawn(self._release_grant(grant))

    async def _release_grant(self, grant: Grant) -> None:
        await self._let_go(grant)
        self._send(wire.Released(grant.grant))

    async def _let_go(self, grant: Grant) -> None:
        """Return when nothing here touches the grant's slots. Transfers are waited for: they have deadlines."""
        self.reader.cancel(grant.grant)
        link = self.engines.links.get(grant.engine)
        if grant.at_engine and link:
            link.send(wire.DropGrant(grant.grant))
            try:
                async with asyncio.timeout(DROP_DEADLINE_S):
                    await grant.dropped.wait()
            except TimeoutError:
                log.error("engine %s does not let go of grant %d; cutting it off", grant.engine, grant.grant)
                link.abort()
        await asyncio.gather(grant.idle.wait(), *grant.tasks, return_exceptions=True)
        self._grants.pop(grant.grant, None)

    # storage and transfers ---------------------------------------------------------------------------------------

    async def _load(self, grant: Grant, reads: list[wire.ReadItem], retained: list[wire.RetainedItem]) -> None:
        """Bring in what the plan asks of this node, then say so; or name all that failed, so that one retry is enough."""
        futures = {self.reader.submit(grant.grant, r.slot, r.key): r.key for r in reads}
        work = (self._fetch_retained(retained), *(self._advance(grant, read) for read in futures))
        errors = [e for e in await asyncio.gather(*work, return_exceptions=True) if e is not None]
        if not errors:
            self._send(wire.ReadsFinished(grant.grant, len(retained) * self._layout.block_bytes))
        elif not any(isinstance(e, asyncio.CancelledError) for e in errors):  # else it is being released
            log.warning("grant %d: %s", grant.grant, "; ".join(sorted({str(e) for e in errors})[:3]))
            bad = [key for read, key in futures.items() if isinstance(read.exception(), (BlockMissing, BlockCorrupt))]
            self._fail(grant, _cause(errors[0]), tuple(bad))

    async def _advance(self, grant: Grant, read: asyncio.Future[int]) -> None:
        self._send(wire.ReadsAdvanced(grant.grant, 1, await read))

    async def _fetch_retained(self, items: list[wire.RetainedItem]) -> None:
        for item in items:
            if item.peer == self._transport.address:
                self.arena.copy(item.peer_slot, item.slot)
            else:
                source = RemoteRanges(item.peer, ARENA, item.peer_grant, [self.arena.block_range(item.peer_slot)])
                into = LocalRanges(ARENA, [self.arena.block_range(item.slot)])
                await self._transport.fetch(source, into, lane=Lane.BLOCKS)
            self.stats.retained_bytes += self._layout.block_bytes

    async def _pull(self, grant: DecodeGrant) -> None:
        """Copy what the prefill node read: full blocks, in the background lane."""
        at_once = max(1, COPY_BATCH_BYTES // self._layout.block_bytes)
        try:
            for start in range(0, len(grant.pulls), at_once):
                own, peer = zip(*grant.pulls[start : start + at_once], strict=True)
                source = RemoteRanges(grant.peer, ARENA, grant.grant, self._blocks(peer))
                await self._transport.fetch(source, LocalRanges(ARENA, self._blocks(own)), lane=Lane.BLOCKS)
        except TransferError as error:
            log.warning("grant %d: %s", grant.grant, error)
            self._fail(grant, _cause(error))
        else:
            self._send(wire.CopyFinished(grant.grant))

    def _blocks(self, slots: tuple[int, ...]) -> list[Range]:
        return [self.arena.block_range(slot) for slot in slots]

    def _written(self, item: wire.PersistItem, durable: bool) -> None:
        self._send(wire.BlockWritten(item.slot, item.key, durable))

    def _fail(self, grant: Grant, cause: str, bad_keys: tuple[bytes, ...] = ()) -> None:
        if not grant.failed:
            grant.failed = True
            self._send(wire.StepFailed(grant.grant, cause, bad_keys))

    # engines -----------------------------------------------------------------------------------------------------

    def _new_stream(self, hello: wire.EngineHello) -> LayerStream:
        return LayerStream(hello.engine, self._layout, hello.kv_tokens, self.arena, self._transport, self._nics)

    def _announce(self, link: EngineLink) -> None:
        self._send(wire.EngineJoined(link.engine, link.hello.kv_tokens, link.hello.process_tokens_per_s))

    async def _attached(self, link: EngineLink) -> None:
        """As long as an engine is attached: stream its batches one after the other."""
        self._announce(link)
        try:
            while True:
                await self._stream(link, await link.batches.get())
        finally:
            self._send(wire.EngineLost(link.engine))
            for grant in self._at(link.engine):
                grant.dropped.set()
                grant.streams = 0
                grant.idle.set()

    def _at(self, engine: EngineId) -> list[Grant]:
        return [g for g in self._grants.values() if g.engine == engine]

    async def _stream(self, link: EngineLink, batch: wire.StreamBatch) -> None:
        assert link.stream is not None
        grants = [self._grants.get(item.grant) for item in batch.items]
        try:
            if not all(isinstance(grant, PrefillGrant) for grant in grants):
                raise ProtocolError(f"engine {link.engine} streams a grant that it does not have")
            await link.stream.run(batch, grants)  # type: ignore[arg-type]
        except TransferError as error:
            link.send(wire.BatchFailed(batch.first_layer, str(error)))
            for grant in grants:
                self._fail(grant, "transfer failed") if grant else None
        finally:
            for grant in grants:
                if grant and grant.streams:
                    grant.streams -= 1
                    if grant.streams == 0:
                        grant.idle.set()

    def _from_engine_safely(self, link: EngineLink, message: wire.Message) -> None:
        self._from_engine(message, link)

    @singledispatchmethod
    def _from_engine(self, message: wire.Message, link: EngineLink) -> None:
        self._send(message)  # the rest goes to the scheduler as it is

    @_from_engine.register
    def _stream_batch(self, message: wire.StreamBatch, link: EngineLink) -> None:
        if self.stats.role is not Role.PREFILL:
            raise ProtocolError("only prefill engines stream layers")
        for item in message.items:
            grant = self._grants.get(item.grant)
            if grant:
                grant.streams += 1
                grant.idle.clear()
        link.batches.put_nowait(message)

    @_from_engine.register
    def _block_filled(self, message: wire.BlockFilled, link: EngineLink) -> None:
        if message.grant in self._grants and self.writer.enqueue(
            wire.PersistItem(message.slot, message.key, message.parent)
        ):
            self._send(wire.BlockHeld(message.grant, message.slot, message.key))

    @_from_engine.register
    def _grant_dropped(self, message: wire.GrantDropped, link: EngineLink) -> None:
        grant = self._grants.get(message.grant)
        if grant:
            grant.dropped.set()

    @_from_engine.register
    def _engine_report(self, message: wire.EngineReport, link: EngineLink) -> None:
        link.stats = message.stats

    # tasks -------------------------------------------------------------------------------------------------------

    def _run(self, grant: Grant, work: Coroutine[Any, Any, None]) -> None:
        task = self._spawn(work)
        grant.tasks.add(task)
        task.add_done_callback(grant.tasks.discard)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception():
            log.error("a task of the agent failed", exc_info=task.exception())

    async def close(self) -> None:
        """Stop the queues and give the memory back."""
        await self.reader.close()
        await self.writer.close()
        self._transport.unregister(ARENA)
        self.arena.close()


def _cause(error: BaseException) -> str:
    """A few words that metrics can count by; the rest is in the log."""
    kinds = {BlockMissing: "missing block", BlockCorrupt: "corrupt block", StoreUnavailable: "store unavailable"}
    for kind, words in (kinds | {TransferError: "transfer failed"}).items():
        if isinstance(error, kind):
            return words
    return "internal error"
