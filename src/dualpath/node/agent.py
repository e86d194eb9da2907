"""The node agent: carries out what the scheduler assigned to its node, and speaks for the node's engines.

One asyncio loop. Messages from the scheduler and from engines are handled at once; what takes time runs as a task that
belongs to a grant, so that a Release can wait until nothing touches the grant's slots any more.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import singledispatchmethod
from typing import Any

from dualpath.core import engine_wire, wire
from dualpath.core.config import Config
from dualpath.core.errors import ProtocolError, TransferError
from dualpath.core.ids import EngineId
from dualpath.core.keys import KEY_BYTES, BlockKey
from dualpath.core.model import ModelSpec
from dualpath.core.rate import RateMeter
from dualpath.core.report import NodeStats, Role
from dualpath.node.arena import ARENA, Arena
from dualpath.node.engines import EngineLink, EngineServer
from dualpath.node.grants import DecodeGrant, Grant, PrefillGrant, decode_grant, prefill_grant
from dualpath.node.loader import Loader
from dualpath.node.reader import ReadQueue
from dualpath.node.stream import LayerStream
from dualpath.node.writer import WriteQueue
from dualpath.store.base import Store
from dualpath.transport.base import Range, Transport
from dualpath.transport.nic import NicPair

log = logging.getLogger("dualpath.node")
DROP_DEADLINE_S = 120.0  # for an engine to let go of a grant: longer than its longest step


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
        self._spec = spec
        self._layout = spec.layout
        self._transport = transport
        self._nics = nics
        self._send = send
        self._grants: dict[int, Grant] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self._opened = 0
        self.arena = Arena(spec.layout, config.arena_bytes)
        self.write_slots = max(1, int(self.arena.slots * config.storage.write_share))
        deadline_s = config.limits.read_deadline_s
        self.reader = ReadQueue(
            store, self.arena, stats, self._lost, concurrency=config.storage.read_concurrency, deadline_s=deadline_s
        )
        self.writer = WriteQueue(
            store, self.arena, stats, self._written, share=self.write_slots,
            concurrency=config.storage.write_concurrency, deadline_s=deadline_s,
        )  # fmt: skip
        self.engines = EngineServer(
            config.agent_socket(stats.node), config.engines_of(stats.node), stats.role, spec.layout, self.arena,
            self._new_stream, self._attached, self._received,
        )  # fmt: skip
        self._loader = Loader(self.arena, self.reader, transport, stats, send)
        self.rate = RateMeter(0.0)
        transport.register(ARENA, self.arena.view, fd=self.arena.memory.fd, authorize=self._authorize)

    def _authorize(self, grant: int, ranges: Sequence[Range]) -> bool:
        allowed = self.arena.authorize(grant, ranges)
        self.stats.grants_refused += not allowed
        return allowed

    def hello(self, address: str) -> wire.NodeHello:
        """How the node presents itself."""
        return wire.NodeHello(
            wire.PROTOCOL_VERSION, self.stats.node, self.stats.role, self._spec, address, self.arena.slots,
            self.write_slots, self.rate.per_s,
        )  # fmt: skip

    def announce_engines(self) -> None:
        """Tell a scheduler that just took us in which engines are attached."""
        for link in self.engines.links.values():
            self._announce(link)

    def report(self) -> wire.NodeReport:
        """The heartbeat."""
        self.rate.update(self.stats.read_bytes, self.reader.busy_ns())
        self.stats.read_rate_bytes_per_s = self.rate.per_s
        self.stats.lane_bytes = self._transport.lane_bytes()
        self.stats.transport_bytes = self._transport.kind_bytes()
        self.stats.transport_fallbacks = self._transport.fallbacks()
        reads_left = sum(g.reads_left for g in self._grants.values() if not (g.closing or g.failed))
        engines = [link.stats for link in self.engines.links.values()]
        return wire.NodeReport(self.stats, engines, self._opened, reads_left)

    async def reset(self) -> None:
        """The scheduler forgot us: nothing touches any slot when this returns, so that all are free for new grants."""
        ends = [self._let_go(grant) for grant in list(self._grants.values())]
        await asyncio.gather(*ends, *self._releases, self.writer.abandon(), return_exceptions=True)
        for grant in self.arena.revoke_all():
            await self._transport.drained(ARENA, grant)
        self._opened = 0

    # from the scheduler ------------------------------------------------------------------------------------------

    def receive(self, message: wire.Message) -> None:
        """Carry out a message of the scheduler. One that cannot be carried out ends its attempt, not the agent."""
        try:
            self._on(message)
        except Exception as error:
            log.exception("cannot carry out %s", type(message).__name__)
            grant = getattr(message, "grant", None)
            if grant in self._grants:
                self._loader.fail(self._grants[grant], error)
            elif grant is not None:
                self._send(wire.StepFailed(grant, "internal error"))

    @singledispatchmethod
    def _on(self, message: wire.Message) -> None:
        raise ProtocolError(f"{type(message).__name__} is not for an agent")

    @_on.register
    def _open_prefill(self, message: wire.OpenPrefill) -> None:
        self._opened += 1
        grant = self._open(prefill_grant(message), message.slots, message.reads)
        if message.reads:
            self._run(grant, self._loader.load(grant, message.reads, []))

    @_on.register
    def _open_decode(self, message: wire.OpenDecode) -> None:
        self._opened += 1
        grant = self._open(decode_grant(message), message.slots, message.reads)
        self._run(grant, self._loader.load(grant, message.reads, message.retained))

    @_on.register
    def _open_relay(self, message: wire.OpenRelay) -> None:
        self._opened += 1
        grant = self._open(Grant(message.grant), message.slots, message.reads)
        self._run(grant, self._loader.load(grant, message.reads, []))

    def _open(self, grant: Grant, slots: list[int], reads: list[wire.ReadItem]) -> Grant:
        if grant.grant in self._grants:
            raise ProtocolError(f"grant {grant.grant} is open already")
        grant.before = self.arena.open(grant.grant, slots)
        grant.link = self.engines.links.get(grant.engine) if grant.engine else None
        grant.reads_left = len(reads)
        self._grants[grant.grant] = grant
        return grant

    @_on.register
    def _start_pull(self, message: wire.StartPull) -> None:
        grant = self._grants.get(message.grant)
        if isinstance(grant, DecodeGrant) and not grant.closing:
            self._run(grant, self._loader.pull(grant))

    @_on.register
    def _start_fetch(self, message: wire.StartFetch) -> None:
        grant = self._grants.get(message.grant)
        if isinstance(grant, DecodeGrant) and not grant.closing:
            self._run(grant, self._loader.fetch(grant, message.peer, message.pairs))

    @_on.register
    def _persist(self, message: wire.Persist) -> None:
        for item in message.items:
            if message.grant in self._grants and self._is_valid(message.grant, item):
                self.writer.enqueue(message.grant, item)
            else:
                self._written(item, durable=False)

    @_on.register
    def _start_prefill(self, message: wire.StartPrefill) -> None:
        self._to_engine(message)

    @_on.register
    def _start_decode(self, message: wire.StartDecode) -> None:
        self._to_engine(message)

    def _to_engine(self, message: wire.StartPrefill | wire.StartDecode) -> None:
        grant = self._grants.get(message.grant)
        if grant is None or grant.closing:
            return
        link = self.engines.links.get(message.engine)
        if link and link is grant.link:  # otherwise EngineLost is on its way to the scheduler
            grant.at_engine = True
            link.send(message)

    @_on.register
    def _release(self, message: wire.Release) -> None:
        grant = self._grants.get(message.grant)
        if grant is None:
            self._send(wire.Released(message.grant))
        else:
            task = asyncio.create_task(self._release_grant(grant))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

    async def _release_grant(self, grant: Grant) -> None:
        await self._let_go(grant)
        self._send(wire.Released(grant.grant))

    async def _let_go(self, grant: Grant) -> None:
        """Return when nothing here touches the grant's slots, nor its peer's for it."""
        told, grant.closing = grant.closing, True
        self.reader.cancel(grant.grant)
        for task in grant.tasks:
            task.cancel()
        await asyncio.gather(*grant.tasks, return_exceptions=True)
        await self.reader.drained(grant.grant)
        if grant.at_engine and grant.link and not grant.dropped.is_set():
            if not told:
                grant.link.send(engine_wire.DropGrant(grant.grant))
            await self._dropped(grant, grant.link)
        await grant.idle.wait()
        self._grants.pop(grant.grant, None)
        self.writer.release(grant.grant)

    async def _dropped(self, grant: Grant, link: EngineLink) -> None:
        try:
            async with asyncio.timeout(DROP_DEADLINE_S):
                await grant.dropped.wait()
        except TimeoutError:
            log.error("engine %s does not let go of grant %d; cutting it off", grant.engine, grant.grant)
            link.abort()
            await grant.dropped.wait()  # set when its connection is cleaned up

    def _is_valid(self, grant: int, item: wire.PersistItem) -> bool:
        """Whether a write-back names a slot of the grant, and keys."""
        keys = len(item.key) == KEY_BYTES and len(item.parent) in (0, KEY_BYTES)
        return keys and self.arena.holds(grant, item.slot)

    def _written(self, item: wire.PersistItem, durable: bool) -> None:
        self._send(wire.BlockWritten(item.slot, item.key, durable))

    def _lost(self, key: BlockKey) -> None:
        self._send(wire.BlockLost(key))

    # engines -----------------------------------------------------------------------------------------------------

    def _new_stream(self, engine: EngineId, hello: engine_wire.EngineHello) -> LayerStream:
        return LayerStream(
            engine, self._layout, hello.window_tokens, hello.ranks, self.arena, self._transport, self._nics
        )

    def _announce(self, link: EngineLink) -> None:
        if not link.serving:
            return
        hello = link.hello
        self._send(wire.EngineJoined(link.engine, hello.kv_tokens, hello.process_tokens_per_s, hello.url))

    async def _attached(self, link: EngineLink) -> None:
        """As long as an engine is attached: stream its batches one after the other.

        A prefill has finished when the batches before it have arrived at the decode node.
        """
        self._announce(link)
        try:
            while True:
                message = await link.batches.get()
                if isinstance(message, engine_wire.StreamBatch):
                    await self._stream(link, message)
                elif (grant := self._grants.get(message.grant)) and not grant.failed:
                    self._send(message)
        finally:
            self._send(wire.EngineLost(link.engine))
            while not link.batches.empty():
                if isinstance(message := link.batches.get_nowait(), engine_wire.StreamBatch):
                    self._streamed(message)
            for grant in self._grants.values():
                if grant.link is link:
                    grant.dropped.set()

    async def _stream(self, link: EngineLink, batch: engine_wire.StreamBatch) -> None:
        assert link.stream is not None
        grants = [grant for item in batch.items if isinstance(grant := self._grants.get(item.grant), PrefillGrant)]
        try:
            await link.stream.run(batch, grants)
        except TransferError as error:
            link.send(engine_wire.BatchFailed(batch.first_layer, str(error)))
            for grant in grants:
                self._loader.fail(grant, error)
        finally:
            self._streamed(batch)

    def _streamed(self, batch: engine_wire.StreamBatch) -> None:
        for item in batch.items:
            self._grants[item.grant].stream_ends()

    def _received(self, link: EngineLink, message: wire.Message) -> None:
        """Carry out or relay an engine's message; ProtocolError, which cuts it off, when it may not say that."""
        grants = [item.grant for item in message.items] if isinstance(message, engine_wire.StreamBatch) else []
        grants += [message.grant] if hasattr(message, "grant") else []
        for number in grants:
            grant = self._grants.get(number)
            if grant is None or grant.link is not link or not grant.at_engine:
                raise ProtocolError(f"engine {link.engine} names grant {number}, which it does not have")
        self._from_engine(message, link)

    @singledispatchmethod
    def _from_engine(self, message: wire.Message, link: EngineLink) -> None:
        self._send(message)  # the rest goes to the scheduler as it is

    @_from_engine.register
    def _second_hello(self, message: engine_wire.EngineHello | engine_wire.RankHello, link: EngineLink) -> None:
        raise ProtocolError("an engine says hello once")

    @_from_engine.register
    def _engine_serves(self, message: engine_wire.EngineServes, link: EngineLink) -> None:
        if not link.serving:
            link.serving = True
            self._announce(link)

    @_from_engine.register
    def _stream_batch(self, message: engine_wire.StreamBatch, link: EngineLink) -> None:
        if self.stats.role is not Role.PREFILL or link.batches.full():
            raise ProtocolError(f"engine {link.engine} may not announce a batch now")
        for item in message.items:
            self._grants[item.grant].stream_begins()
        link.batches.put_nowait(message)

    @_from_engine.register
    def _prefill_finished(self, message: wire.PrefillFinished, link: EngineLink) -> None:
        if link.batches.full():
            raise ProtocolError(f"engine {link.engine} has finished more prefills than it was given")
        link.batches.put_nowait(message)

    @_from_engine.register
    def _block_filled(self, message: engine_wire.BlockFilled, link: EngineLink) -> None:
        item = wire.PersistItem(message.slot, message.key, message.parent)
        if not self._is_valid(message.grant, item):
            raise ProtocolError(f"slot {message.slot} is not grant {message.grant}'s, or a bad key")
        self.writer.enqueue(message.grant, item)
        self._send(wire.BlockHeld(message.grant, message.slot, message.key))

    @_from_engine.register
    def _grant_dropped(self, message: engine_wire.GrantDropped, link: EngineLink) -> None:
        self._grants[message.grant].dropped.set()

    @_from_engine.register
    def _engine_report(self, message: engine_wire.EngineReport, link: EngineLink) -> None:
        link.stats = message.stats

    # tasks -------------------------------------------------------------------------------------------------------

    def _run(self, grant: Grant, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guard(grant, work))
        grant.tasks.add(task)
        task.add_done_callback(grant.tasks.discard)

    async def _guard(self, grant: Grant, work: Coroutine[Any, Any, None]) -> None:
        """Whatever goes wrong in a grant's work ends its attempt, never in silence."""
        try:
            await work
        except Exception as error:
            self._loader.fail(grant, error)

    async def close(self) -> None:
        """Stop all work and give the memory back; the transport is closed before."""
        tasks = [*self._releases, *(task for grant in self._grants.values() for task in grant.tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.reader.close()
        await self.writer.close()
        self._transport.unregister(ARENA)
        self.arena.close()
