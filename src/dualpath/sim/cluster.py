"""The simulated driver of the cluster machine: its commands move nodes and engines, what those do becomes its events.

The machine, its dispatcher and all policies are the live scheduler's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.report import Role
from dualpath.core.request import FinishReason
from dualpath.policy.batch import PrefillWork
from dualpath.policy.retain import Retention
from dualpath.protocol import events as ev
from dualpath.protocol.machine import ClusterMachine, Hit, Settings
from dualpath.protocol.request import Phase
from dualpath.sim.decode import DecodeEngine, DecodeGroup
from dualpath.sim.grant import Ask, Grant
from dualpath.sim.kernel import BACKGROUND, Kernel
from dualpath.sim.network import Link, Network
from dualpath.sim.node import SimNode, make_node
from dualpath.sim.perfetto import Recorder
from dualpath.sim.phases import record_request
from dualpath.sim.physics import Physics
from dualpath.sim.prefill import BatchRules, PrefillEngine, PrefillGroup
from dualpath.sim.shape import ClusterShape
from dualpath.sim.transfers import Transfers

Place = tuple[EngineId, SimNode, int]  # an engine, its node, its number there
_TICK_NS = 5_000_000_000
_FOREVER_NS = 2**61


class Cluster:
    """Nodes, engines and the machine. `on_finished` and `on_failed` hear the end of every request."""

    def __init__(
        self, kernel: Kernel, physics: Physics, shape: ClusterShape,
        on_finished: Callable[[Ask], None], on_failed: Callable[[Ask, str], None], recorder: Recorder | None = None,
    ) -> None:  # fmt: skip
        self.kernel = kernel
        self.physics = physics
        self.shape = shape
        self.block_bytes = shape.block_tokens * physics.kv_bytes_per_token
        self._on_request_finished = on_finished
        self._on_request_failed = on_failed
        self._recorder = recorder
        self.network = Network(kernel)
        settings = Settings(
            block_tokens=shape.block_tokens, prefill_policy=shape.prefill_policy, read_policy=shape.read_policy,
            overtake_limit=shape.overtake_limit, lease_ns=_FOREVER_NS,
            waiting_deadline_ns=_FOREVER_NS, stage_deadline_ns=300_000_000_000,
        )  # fmt: skip
        self.machine = ClusterMachine(settings, self._look_up)
        self._do: dict[type, Callable[[Any], None]] = {
            ev.Assign: self._assign, ev.StartPull: self._start_pull, ev.StartFetch: self._start_fetch,
            ev.StartPrefill: self._start_prefill, ev.StartDecode: self._start_decode,
            ev.Release: self._release, ev.FinishRequest: self._finish_request, ev.FailRequest: self._fail_request,
        }  # fmt: skip
        self._retention = Retention(shape.retain_blocks)
        self._events: deque[ev.Event] = deque()
        self._feeding = False
        self.asks: dict[RequestId, Ask] = {}
        self._grants: dict[int, Grant] = {}
        self._transfers = Transfers(
            self.network,
            physics.kv_bytes_per_token,
            physics.times.layers,
            with_hits=shape.handover == "layerwise",
            free=shape.oracle,
        )
        storage = Link("storage", physics.storage_bytes_per_s)
        self.nodes = {
            name: make_node(name, role, physics, self.block_bytes, kernel, self.network, storage)
            for role, names in ((Role.PREFILL, shape.prefill_nodes), (Role.DECODE, shape.decode_nodes))
            for name in names
        }
        self.prefills: dict[EngineId, PrefillEngine] = {}
        self.decodes: dict[EngineId, DecodeEngine] = {}
        self.decode_groups: list[DecodeGroup] = []
        self._make_engines()
        for node in self.nodes.values():
            self._join(node)
        kernel.after(_TICK_NS, self._tick, priority=BACKGROUND)

    # building --------------------------------------------------------------------------------------------------------

    def _make_engines(self) -> None:
        times, shape = self.physics.times, self.shape
        rules = BatchRules(
            shape.block_tokens, shape.quota_ns, times.prefill_window_tokens(shape.layerwise), shape.layerwise
        )
        for places in _grouped(self._places(Role.PREFILL), times.prefill_group_engines):
            group = PrefillGroup(self.kernel, times, rules, self._transfers, self._prefill_done)
            for name, node, index in places:
                engine = PrefillEngine(name, node, node.cnics[index], group, rules.window_tokens)
                self.prefills[name] = engine
                group.engines.append(engine)
        for places in _grouped(self._places(Role.DECODE), times.decode_group_engines):
            decoders = DecodeGroup(self.kernel, times, len(places), self._decode_done)
            self.decode_groups.append(decoders)
            for at, (name, node, index) in enumerate(places):
                self.decodes[name] = DecodeEngine(name, node, node.cnics[index], decoders, at, index)

    def _places(self, role: Role) -> list[Place]:
        nodes = [node for node in self.nodes.values() if node.role is role]
        return [(EngineId(f"{node.name}/{i}"), node, i) for node in nodes for i in range(self.physics.engines)]

    def _join(self, node: SimNode) -> None:
        shape, times = self.shape, self.physics.times
        prefill = node.role is Role.PREFILL
        slots = shape.prefill_slots if prefill else shape.decode_slots
        rate = self.physics.snic_bytes_per_s / self.physics.kv_bytes_per_token
        self._feed(ev.NodeJoined(node.name, node.role, slots, shape.write_slots if not prefill else 0, rate))
        rates = (shape.process_tokens_per_s, shape.compute_tokens_per_s) if prefill else (0.0, 0.0)
        kv_tokens = times.prefill_window_tokens(shape.layerwise) if prefill else times.decode_kv_tokens()
        for index in range(self.physics.engines):
            engine = EngineId(f"{node.name}/{index}")
            self._feed(ev.EngineJoined(engine, kv_tokens, *rates))

    # the machine -----------------------------------------------------------------------------------------------------

    def submit(self, ask: Ask) -> None:
        """An agent asks."""
        self.asks[ask.request] = ask
        self._feed(ev.RequestArrived(ask.request, ask.prompt_tokens, ask.gen_tokens))

    def _look_up(self, request: RequestId) -> Hit:
        ask = self.asks[request]
        return Hit(ask.hit_blocks, kept=self._retention.find(str(ask.agent)))

    def _feed(self, event: ev.Event) -> None:
        """Give an event to the machine, and those that its commands cause at once."""
        events = self._events
        events.append(event)
        if self._feeding:
            return
        self._feeding = True
        now_ns, machine = self.kernel.now_ns, self.machine
        while events:
            machine.receive(events.popleft(), now_ns=now_ns)
            self._carry_out()
        self._feeding = False

    def _carry_out(self) -> None:
        for command in self.machine.drain():
            self._do[type(command)](command)

    def _tick(self) -> None:
        """Deadlines of attempts."""
        due = self.machine.next_timeout_ns()
        if due is not None and due <= self.kernel.now_ns:
            self.machine.on_timeout(now_ns=self.kernel.now_ns)
            self._carry_out()
        self.kernel.after(_TICK_NS, self._tick, priority=BACKGROUND)

    # commands --------------------------------------------------------------------------------------------------------

    def _assign(self, command: ev.Assign) -> None:
        ask = self.asks[command.request]
        self.kernel.note(command.grant, command.request, command.prefill, command.decode, command.hit_blocks)
        prefill, decode = self.prefills[command.prefill], self.decodes[command.decode]
        block_tokens = self.shape.block_tokens
        cached = command.hit_blocks * block_tokens
        grant = Grant(
            command, ask, prefill, decode, cached, command.plan.blocks_by(prefill.node.name) * block_tokens,
            PrefillWork(ask.request, cached, ask.prompt_tokens - cached), self.kernel.now_ns,
        )  # fmt: skip
        self._grants[command.grant] = grant
        for node in self._nodes_of(grant):
            node.grants.add(command.grant)
        if grant.local_tokens:
            self._read(grant, prefill.node, self._loaded)
        # The decode node always answers, so what it brings in is counted from one
        grant.bringing = 1 + bool(command.plan.blocks_by(decode.node.name)) + self._fetch_kept(grant)
        self._read(grant, decode.node, self._brought)
        self._brought(grant, decode.node)
        if command.relay:
            self._read(grant, self.nodes[command.relay.node], self._loaded)

    def _nodes_of(self, grant: Grant) -> list[SimNode]:
        relay = grant.assign.relay
        return [grant.prefill.node, grant.decode.node, *([self.nodes[relay.node]] if relay else [])]

    def _read(self, grant: Grant, node: SimNode, done: Callable[[Grant, SimNode], None]) -> None:
        blocks = grant.assign.plan.blocks_by(node.name)
        if blocks and not self.shape.oracle:
            node.reads.submit(grant.number, blocks, self._advanced, done, (grant, node))
        elif blocks:
            self._feed(ev.ReadsAdvanced(grant.number, node.name, blocks))
            done(grant, node)

    def _fetch_kept(self, grant: Grant) -> int:
        """Blocks in spare DRAM to the decode node's buffer; 1 if that takes a transfer."""
        kept, decode = grant.assign.kept, grant.decode.node
        blocks = min(kept.blocks, grant.assign.hit_blocks) if kept else 0
        if not kept or not blocks or kept.node == decode.name:
            return 0
        tokens = blocks * self.shape.block_tokens
        return self._transfers.fetch(self.nodes[kept.node], grant, tokens, self._brought, grant, decode)

    def _brought(self, grant: Grant, node: SimNode) -> None:
        """One of the things that the decode node brings in is there."""
        grant.bringing -= 1
        if grant.bringing == 0:
            self._loaded(grant, node)

    def _advanced(self, blocks: int, grant: Grant, node: SimNode) -> None:
        self._feed(ev.ReadsAdvanced(grant.number, node.name, blocks))

    def _loaded(self, grant: Grant, node: SimNode) -> None:
        self._feed(ev.ReadsFinished(grant.number, node.name))

    def _start_pull(self, command: ev.StartPull) -> None:
        """In the paper's hand-over the hit comes with the prefill, which then has the last word."""
        grant = self._grants[command.grant]
        if self.shape.handover == "layerwise" or self._transfers.pull(grant, self._pulled, grant) == 0:
            self._pulled(grant)

    def _pulled(self, grant: Grant) -> None:
        if not grant.ended:
            self._feed(ev.CopyFinished(grant.number))

    def _start_fetch(self, command: ev.StartFetch) -> None:
        """What a third node read, to the decode node's buffer."""
        grant = self._grants[command.grant]
        relay = grant.assign.relay
        assert relay is not None
        tokens = len(relay.blocks) * self.shape.block_tokens
        if self._transfers.fetch(self.nodes[relay.node], grant, tokens, self._fetched, grant) == 0:
            self._fetched(grant)

    def _fetched(self, grant: Grant) -> None:
        if not grant.ended:
            self._feed(ev.FetchFinished(grant.number))

    def _start_prefill(self, command: ev.StartPrefill) -> None:
        grant = self._grants[command.grant]
        grant.loaded_ns = self.kernel.now_ns
        self.kernel.after(self.physics.load_ns, self._queue_prefill, grant)

    def _queue_prefill(self, grant: Grant) -> None:
        if not grant.ended:
            grant.prefill.group.queue(grant)

    def _prefill_done(self, grant: Grant) -> None:
        grant.ask.first_ns = self.kernel.now_ns
        reason = FinishReason.LENGTH if grant.ask.gen_tokens == 1 else None
        self._feed(ev.PrefillFinished(grant.number, reason))

    def _start_decode(self, command: ev.StartDecode) -> None:
        grant = self._grants[command.grant]
        if self._transfers.enter(grant, self._copied, grant) == 0:
            self._copied(grant)

    def _copied(self, grant: Grant) -> None:
        self.kernel.after(self.physics.handoff_ns, self._entered, grant)

    def _entered(self, grant: Grant) -> None:
        if not grant.ended:
            grant.entered_ns = self.kernel.now_ns
            grant.decode.group.join(grant)

    def _decode_done(self, grant: Grant) -> None:
        self._feed(ev.DecodeFinished(grant.number, FinishReason.LENGTH, grant.ask.gen_tokens))

    def _release(self, command: ev.Release) -> None:
        self.nodes[command.node].grants.discard(command.grant)
        grant = self._grants.get(command.grant)
        if grant is None:
            self._feed(ev.Released(command.grant, command.node))
            return
        if self.machine.attempts[command.grant].phase is Phase.ENDED:
            self._end(grant)
        if command.node == grant.decode.node.name:
            del self._grants[command.grant]
        self._feed(ev.Released(command.grant, command.node))

    def _end(self, grant: Grant) -> None:
        """Whatever still runs for it counts for nothing."""
        if grant.ended:
            return
        grant.ended = True
        if grant.ask.request in self.asks and grant.ask.first_ns >= 0:
            grant.ask.first_ns = -1
        for node in self._nodes_of(grant):
            node.reads.cancel(grant.number)
        grant.prefill.group.forget(grant)
        grant.decode.group.leave(grant)

    def _finish_request(self, command: ev.FinishRequest) -> None:
        ask = self.asks.pop(command.request)
        self.kernel.note(command.request)
        grant = self._grants[command.grant]
        grant.ended = True
        self._persist(grant)
        if self._recorder:
            record_request(self._recorder, grant, self.kernel.now_ns)
        self._on_request_finished(ask)

    def _persist(self, grant: Grant) -> None:
        """All full blocks that are new; the last token has no KV."""
        full = (grant.ask.prompt_tokens + grant.ask.gen_tokens - 1) // self.shape.block_tokens
        self._retention.keep(str(grant.ask.agent), grant.decode.node.name, full)
        if not self.shape.oracle:
            grant.decode.node.writes.submit(grant.number, full - grant.assign.hit_blocks, None, None, ())

    def _fail_request(self, command: ev.FailRequest) -> None:
        self._on_request_failed(self.asks.pop(command.request), command.message)

    # faults ----------------------------------------------------------------------------------------------------------

    def lose(self, name: NodeId) -> None:
        """The node's agent and engines are gone; the machine hears of it at once (the lease is the fault's to add)."""
        node = self.nodes[name]
        node.up = False
        for number in sorted(node.grants):
            if number in self._grants:
                self._end(self._grants[number])
        node.grants.clear()
        self._retention.lose(name)
        self._feed(ev.NodeLost(name))

    def return_(self, name: NodeId) -> None:
        """The node joins again, empty."""
        self.nodes[name].up = True
        self._join(self.nodes[name])


def _grouped(places: list[Place], size: int) -> list[list[Place]]:
    """Engines that step together; what is left over is a smaller group."""
    return [places[at : at + size] for at in range(0, len(places), size)]
