"""The cluster's brain as a pure machine: events in, commands out; no clock, no socket, no randomness.

Theory of operation. Requests wait in order of arrival. Whenever something changes, `_dispatch` walks the waiting ones:
the decode policy places them within their group, the prefill policy names a prefill engine, the driver's `look_up`
tells which blocks are cached, the read policy plans who reads them, and if both arenas have the slots (all or nothing)
an attempt starts. Later events move the attempt through its phases (protocol/request.py). Loads are what was assigned
and is not completed, in-flight included; reports only correct them (paper section 5).
"""

import bisect
import heapq
from collections import Counter, deque
from collections.abc import Callable
from functools import singledispatchmethod

import msgspec

from dualpath.core.ids import EngineId, NodeId, RequestId, node_of
from dualpath.core.plan import BlockRange, ReadPlan, ReadSegment
from dualpath.core.report import Role
from dualpath.core.request import FinishReason
from dualpath.policy.limits import limits_from_rates
from dualpath.policy.loads import Limits
from dualpath.policy.prefill import PREFILL_POLICIES
from dualpath.policy.read import READ_POLICIES
from dualpath.protocol import events as ev
from dualpath.protocol.ledger import SlotLedger
from dualpath.protocol.membership import Engine, Membership, Node
from dualpath.protocol.placement import place_decodes
from dualpath.protocol.request import Attempt, Phase, Waiting


class Settings(msgspec.Struct, frozen=True):
    """What the operator chooses."""

    block_tokens: int
    prefill_policy: str
    read_policy: str
    overtake_limit: int = 8  # later requests that may pass one whose slots are not free
    max_attempts: int = 6
    attempts_with_hits: int = 3  # later attempts recompute everything: storage has failed often enough
    lease_ns: int = 10_000_000_000
    stage_deadline_ns: int = 120_000_000_000  # without any event of the attempt
    waiting_deadline_ns: int = 600_000_000_000


class Hit(msgspec.Struct, frozen=True):
    """The cached prefix of a request: `blocks` full blocks, of which `retained` lie in arenas, the rest on storage."""

    blocks: int
    retained: tuple[ev.RetainedBlock, ...] = ()


LookUp = Callable[[RequestId], Hit]


class ClusterMachine:
    """Feed it with receive() and on_timeout(), then carry out what drain() returns."""

    def __init__(self, settings: Settings, look_up: LookUp) -> None:
        self._settings = settings
        self._look_up = look_up
        self._choose_prefill = PREFILL_POLICIES[settings.prefill_policy]
        self._plan_read = READ_POLICIES[settings.read_policy]
        self.members = Membership(settings.lease_ns)
        self.waiting: list[Waiting] = []
        self.attempts: dict[int, Attempt] = {}
        self.decisions: Counter[str] = Counter()
        self.recomputes: Counter[str] = Counter()
        self.any_read_ns = 0  # time in which any planned read was waiting or running
        self._running: dict[RequestId, int] = {}
        self._deadlines: list[tuple[int, int]] = []  # heap of (deadline, grant); stale entries are put back
        self._commands: deque[ev.Command] = deque()
        self._grants = 0
        self._arrivals = 0
        self._plans = 0
        self._now_ns = 0
        self._reading = False

    # the interface of every machine ------------------------------------------------------------------------------

    def receive(self, event: ev.Event, *, now_ns: int) -> None:
        """Something happened."""
        self._advance(now_ns)
        self._on(event)
        self._dispatch()
        self._note_reading()

    def on_timeout(self, *, now_ns: int) -> None:
        """A deadline may have passed."""
        self._advance(now_ns)
        for node in self.members.expired(now_ns):
            self._on(ev.NodeLost(node))
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, grant = heapq.heappop(self._deadlines)
            attempt = self.attempts.get(grant)
            if attempt and attempt.phase is not Phase.ENDED:
                if attempt.deadline_ns <= now_ns:
                    self._retry(attempt, "deadline")
                else:
                    heapq.heappush(self._deadlines, (attempt.deadline_ns, grant))
        for request in [w for w in self.waiting if w.since_ns + self._settings.waiting_deadline_ns <= now_ns]:
            self.waiting.remove(request)
            self._fail(request, "no engines or arena slots came free in time; try again later", by_request=False)
        self._dispatch()
        self._note_reading()

    def next_timeout_ns(self) -> int | None:
        """When on_timeout should be called next."""
        times = [t for t in (self.members.next_expiry_ns(),) if t is not None]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        if self.waiting:
            times.append(min(w.since_ns for w in self.waiting) + self._settings.waiting_deadline_ns)
        return min(times, default=None)

    def drain(self) -> list[ev.Command]:
        """Commands since the last call, in order."""
        commands = list(self._commands)
        self._commands.clear()
        return commands

    def check(self) -> None:
        """Invariants; for tests, after every event."""
        for node in self.members.nodes.values():
            node.ledger.check()
        by_engine: Counter[EngineId] = Counter()
        for attempt in self.attempts.values():
            by_engine[attempt.prefill.engine] += attempt.prefill_counted
            by_engine[attempt.decode.engine] += attempt.decode_counted
        for role in Role:
            for engine in self.members.engines(role):
                assert engine.tokens >= 0, f"{engine.engine} has {engine.tokens} tokens"
                assert engine.requests <= by_engine[engine.engine], f"{engine.engine} counts requests that it has not"
        for request, grant in self._running.items():
            assert self.attempts[grant].waiting.request == request
        assert not {w.request for w in self.waiting} & self._running.keys(), "a request waits and runs"

    # nodes and engines -------------------------------------------------------------------------------------------

    @singledispatchmethod
    def _on(self, event: ev.Event) -> None:
        raise TypeError(f"no such event: {event!r}")

    @_on.register
    def _node_joined(self, event: ev.NodeJoined) -> None:
        if event.node in self.members.nodes:
            self._on(ev.NodeLost(event.node))
        ledger = SlotLedger(event.slots, event.write_slots)
        self.members.join(event.node, event.role, ledger, event.read_tokens_per_s, self._now_ns)

    @_on.register
    def _node_reported(self, event: ev.NodeReported) -> None:
        node = self.members.nodes.get(event.node)
        if node:
            self.members.renew(event.node, self._now_ns)
            node.read_tokens_per_s = event.read_tokens_per_s
            if event.read_queue_tokens is not None:
                node.read_queue_tokens = event.read_queue_tokens

    @_on.register
    def _node_lost(self, event: ev.NodeLost) -> None:
        node = self.members.nodes.pop(event.node, None)
        if node is None:
            return
        for attempt in list(self.attempts.values()):
            self._forget_retained(attempt, lost=event.node)
            if node in (attempt.prefill_node, attempt.decode_node):
                attempt.releasing.discard(event.node)
                self._retry(attempt, "node lost")
                self._released(attempt, event.node)
        for request in self.waiting:
            if request.group == event.node:
                request.group = None

    @_on.register
    def _engine_joined(self, event: ev.EngineJoined) -> None:
        node = self.members.nodes.get(node_of(event.engine))
        if node:
            self._lose_engine(node, event.engine)
            node.engines[event.engine] = Engine(event.engine, event.kv_tokens, event.process_tokens_per_s)

    @_on.register
    def _engine_lost(self, event: ev.EngineLost) -> None:
        node = self.members.nodes.get(node_of(event.engine))
        if node:
            self._lose_engine(node, event.engine)

    def _lose_engine(self, node: Node, engine_id: EngineId) -> None:
        engine = node.engines.pop(engine_id, None)
        if engine is None:
            return
        for attempt in list(self.attempts.values()):
            needs_prefill = attempt.phase in (Phase.LOADING, Phase.PREFILLING)
            if attempt.decode is engine or (attempt.prefill is engine and needs_prefill):
                self._retry(attempt, "engine lost")

    # requests ----------------------------------------------------------------------------------------------------

    @_on.register
    def _arrived(self, event: ev.RequestArrived) -> None:
        self._arrivals += 1
        request = Waiting(event.request, self._arrivals, event.prompt_tokens, event.max_tokens, self._now_ns)
        capacity = self.members.request_capacity_tokens(self._settings.block_tokens)
        if capacity and request.total_tokens > capacity:
            message = (
                f"prompt and max_tokens need {request.total_tokens} tokens; this cluster holds {capacity} a request"
            )
            self._fail(request, message, by_request=True)
        else:
            self.waiting.append(request)

    @_on.register
    def _cancelled(self, event: ev.RequestCancelled) -> None:
        self.waiting = [w for w in self.waiting if w.request != event.request]
        grant = self._running.get(event.request)
        if grant is not None:
            self._end(self.attempts[grant])

    @_on.register
    def _reads_advanced(self, event: ev.ReadsAdvanced) -> None:
        attempt = self._alive(event.grant)
        node = self.members.nodes.get(event.node)
        if attempt and node:
            attempt.uncount_reads(node, event.blocks, self._settings.block_tokens)

    @_on.register
    def _reads_finished(self, event: ev.ReadsFinished) -> None:
        attempt = self._alive(event.grant)
        if attempt is None or event.node not in attempt.loading:
            return
        attempt.loading.discard(event.node)
        if event.node == attempt.decode_node.node:
            self._forget_retained(attempt)
        elif not attempt.copied:
            self._commands.append(ev.StartPull(attempt.grant, attempt.decode_node.node))
        if not attempt.loading:
            self._start_prefill(attempt)

    def _start_prefill(self, attempt: Attempt) -> None:
        attempt.phase = Phase.PREFILLING
        self._commands.append(ev.StartPrefill(attempt.grant, attempt.prefill.engine))

    @_on.register
    def _prefill_started(self, event: ev.PrefillStarted) -> None:
        self._alive(event.grant)

    @_on.register
    def _copy_finished(self, event: ev.CopyFinished) -> None:
        attempt = self._alive(event.grant)
        if attempt and not attempt.copied:
            attempt.copied = True
            if attempt.phase is Phase.HANDOFF:
                self._start_decode(attempt)

    @_on.register
    def _prefill_finished(self, event: ev.PrefillFinished) -> None:
        attempt = self._alive(event.grant)
        if attempt is None or attempt.phase is not Phase.PREFILLING:
            return
        attempt.uncount_prefill()
        attempt.phase = Phase.HANDOFF
        if event.reason is not None:
            self._finish(attempt, event.reason, 1)
        elif attempt.copied:
            self._start_decode(attempt)

    def _start_decode(self, attempt: Attempt) -> None:
        attempt.phase = Phase.DECODING
        self._commands.append(ev.StartDecode(attempt.grant, attempt.decode.engine))
        self._release(attempt, attempt.prefill_node.node)

    @_on.register
    def _decode_started(self, event: ev.DecodeStarted) -> None:
        self._alive(event.grant)

    @_on.register
    def _decode_finished(self, event: ev.DecodeFinished) -> None:
        attempt = self._alive(event.grant)
        if attempt and attempt.phase is Phase.DECODING:
            self._finish(attempt, event.reason, event.completion_tokens)

    @_on.register
    def _step_failed(self, event: ev.StepFailed) -> None:
        attempt = self._alive(event.grant)
        if attempt:
            self._retry(attempt, event.cause)

    # slots -------------------------------------------------------------------------------------------------------

    @_on.register
    def _block_held(self, event: ev.BlockHeld) -> None:
        attempt = self.attempts.get(event.grant)
        if attempt and event.slot in attempt.decode_slots:
            attempt.decode_node.ledger.hold(event.slot)

    @_on.register
    def _block_written(self, event: ev.BlockWritten) -> None:
        node = self.members.nodes.get(event.node)
        if node:
            node.ledger.drop(event.slot)

    @_on.register
    def _on_released(self, event: ev.Released) -> None:
        attempt = self.attempts.get(event.grant)
        if attempt:
            self._released(attempt, event.node)

    def _released(self, attempt: Attempt, node: NodeId) -> None:
        """`node` is out of the attempt: free the slots that now nobody touches."""
        attempt.unreleased.discard(node)
        if node == attempt.prefill_node.node:
            attempt.uncount_prefill()
        else:
            attempt.uncount_decode()
            self._forget_retained(attempt)
        prefill_out = attempt.prefill_node.node not in attempt.unreleased
        decode_out = attempt.decode_node.node not in attempt.unreleased
        if prefill_out and (attempt.copied or decode_out):
            self._give_back(attempt.prefill_node, attempt.prefill_slots)
        if prefill_out and decode_out:
            self._give_back(attempt.decode_node, attempt.decode_slots)
            del self.attempts[attempt.grant]

    def _give_back(self, node: Node, slots: list[int]) -> None:
        # the ledger of a lost node is history, and so is what it says of the slots
        node.ledger.release(slots)
        slots.clear()

    def _forget_retained(self, attempt: Attempt, lost: NodeId | None = None) -> None:
        """Let go of the blocks fetched from other requests' slots; with `lost`, only of those on that node."""
        kept = []
        for block in attempt.retained:
            if lost is not None and block.node != lost:
                kept.append(block)
            elif block.node in self.members.nodes:
                self.members.nodes[block.node].ledger.drop(block.slot)
        attempt.retained = tuple(kept)

    def _release(self, attempt: Attempt, node: NodeId) -> None:
        if node in attempt.unreleased and node not in attempt.releasing and node in self.members.nodes:
            attempt.releasing.add(node)
            self._commands.append(ev.Release(attempt.grant, node))

    # ends of attempts --------------------------------------------------------------------------------------------

    def _alive(self, grant: int) -> Attempt | None:
        """The attempt if it still runs; any event of it is progress and moves its deadline."""
        attempt = self.attempts.get(grant)
        if attempt is None or attempt.phase is Phase.ENDED:
            return None
        attempt.deadline_ns = self._now_ns + self._settings.stage_deadline_ns
        return attempt

    def _finish(self, attempt: Attempt, reason: FinishReason, completion_tokens: int) -> None:
        attempt.uncount_decode()
        request = attempt.waiting.request
        self._commands.append(ev.FinishRequest(attempt.grant, request, reason, completion_tokens))
        self._end(attempt)

    def _end(self, attempt: Attempt) -> None:
        """No further step is taken; nodes are told to let go."""
        if attempt.phase is Phase.ENDED:
            return
        attempt.phase = Phase.ENDED
        self._running.pop(attempt.waiting.request, None)
        for node in (attempt.prefill_node, attempt.decode_node):
            attempt.uncount_reads(node, attempt.reads_left.get(node.node, 0), self._settings.block_tokens)
            self._release(attempt, node.node)

    def _retry(self, attempt: Attempt, cause: str) -> None:
        if attempt.phase is Phase.ENDED:
            return
        self._end(attempt)
        self.recomputes[cause] += 1
        request = attempt.waiting
        request.group = None
        if request.attempts >= self._settings.max_attempts:
            self._fail(
                request,
                f"gave up after {request.attempts} attempts; the last one failed: {cause}",
                by_request=False,
            )
        else:
            bisect.insort(self.waiting, request, key=lambda w: w.sequence)

    def _fail(self, request: Waiting, message: str, *, by_request: bool) -> None:
        self._commands.append(ev.FailRequest(request.request, message, by_request))

    # dispatch ----------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Start attempts for waiting requests, oldest first; see the module's theory of operation."""
        if not self.waiting:
            return
        placed = place_decodes(self.waiting, list(self.members.of_role(Role.DECODE)))
        limits = self._limits()
        started: set[RequestId] = set()
        passed: list[Waiting] = []
        for request in self.waiting:
            decode = placed.get(request.request)
            prefill = self._choose_prefill_engine(limits) if decode else None
            if decode and prefill is None:
                break
            if decode and prefill and self._try_start(request, prefill, decode):
                started.add(request.request)
                for earlier in passed:
                    earlier.overtaken += 1
            else:
                passed.append(request)
                if request.overtaken >= self._settings.overtake_limit:
                    break
        if started:
            self.waiting = [w for w in self.waiting if w.request not in started]

    def _limits(self) -> Limits:
        """alpha and beta from the rates that nodes and engines measured (means over the prefill side)."""
        nodes = list(self.members.of_role(Role.PREFILL))
        engines = list(self.members.engines(Role.PREFILL))
        read = sum(n.read_tokens_per_s for n in nodes) / max(1, len(nodes))
        process = sum(e.process_tokens_per_s for e in engines) / max(1, len(engines))
        return limits_from_rates(read, process)

    def _choose_prefill_engine(self, limits: Limits) -> EngineId | None:
        loads = [load for node in self.members.of_role(Role.PREFILL) for load in node.engine_loads()]
        return self._choose_prefill(loads, limits, self._grants)

    def _try_start(self, request: Waiting, prefill_id: EngineId, decode_id: EngineId) -> bool:
        """Plan the read and reserve all slots on both sides, or change nothing."""
        prefill_node, decode_node = (
            self.members.nodes[node_of(prefill_id)],
            self.members.nodes[node_of(decode_id)],
        )
        hit = self._hit(request)
        plan = self._plan(hit, prefill_node, decode_node)
        prefill_blocks = _blocks_of(plan, prefill_node.node)
        total_blocks = -(-request.total_tokens // self._settings.block_tokens)
        if len(prefill_blocks) > prefill_node.ledger.available or total_blocks > decode_node.ledger.available:
            return False
        self._grants += 1
        self._plans += bool(plan.segments)
        request.attempts += 1
        attempt = Attempt(
            self._grants, request, prefill_node, prefill_node.engines[prefill_id], decode_node,
            decode_node.engines[decode_id], plan, hit.retained, prefill_node.ledger.take(len(prefill_blocks)),
            decode_node.ledger.take(total_blocks), self._now_ns + self._settings.stage_deadline_ns,
        )  # fmt: skip
        self._start(attempt, hit.blocks, prefill_blocks)
        return True

    def _start(self, attempt: Attempt, hit_blocks: int, prefill_blocks: tuple[int, ...]) -> None:
        request = attempt.waiting
        nodes = {
            attempt.prefill_node.node: attempt.prefill_node,
            attempt.decode_node.node: attempt.decode_node,
        }
        self.attempts[attempt.grant] = attempt
        self._running[request.request] = attempt.grant
        heapq.heappush(self._deadlines, (attempt.deadline_ns, attempt.grant))
        attempt.unreleased = set(nodes)
        attempt.copied = not prefill_blocks
        for node_id, node in nodes.items():
            attempt.reads_left[node_id] = attempt.plan.blocks_by(node_id)
            node.read_queue_tokens += attempt.reads_left[node_id] * self._settings.block_tokens
            if attempt.reads_left[node_id]:
                attempt.loading.add(node_id)
        # also with nothing to read: its answer says that the grant is open there, so that pushes find their slots
        attempt.loading.add(attempt.decode_node.node)
        for block in attempt.retained:
            self.members.nodes[block.node].ledger.hold(block.slot)
        attempt.prefill.requests += 1
        attempt.prefill.tokens += request.prompt_tokens
        attempt.decode.requests += 1
        attempt.decode.tokens += request.total_tokens
        self._count_decisions(attempt)
        self._commands.append(
            ev.Assign(
                attempt.grant, request.request, attempt.prefill.engine, attempt.decode.engine, hit_blocks, attempt.plan,
                attempt.retained, prefill_blocks, tuple(attempt.prefill_slots), tuple(attempt.decode_slots),
            )
        )  # fmt: skip

    def _hit(self, request: Waiting) -> Hit:
        """The usable hit: at least one prompt token is always computed, for the first token's logits."""
        if request.attempts >= self._settings.attempts_with_hits:
            return Hit(0)
        hit = self._look_up(request.request)
        blocks = min(hit.blocks, (request.prompt_tokens - 1) // self._settings.block_tokens)
        retained = tuple(r for r in hit.retained if r.block < blocks and r.node in self.members.nodes)
        return Hit(blocks, retained)

    def _plan(self, hit: Hit, prefill: Node, decode: Node) -> ReadPlan:
        """The policy plans the blocks before the first retained one; stored ones after it go to the decode side."""
        first_retained = min((r.block for r in hit.retained), default=hit.blocks)
        block_tokens = self._settings.block_tokens
        plan = self._plan_read(BlockRange(0, first_retained), prefill.load(), decode.load(), block_tokens, self._plans)
        retained = {r.block for r in hit.retained}
        strays = [b for b in range(first_retained, hit.blocks) if b not in retained]
        return ReadPlan(plan.segments + tuple(ReadSegment(BlockRange(b, b + 1), decode.node) for b in strays))

    def _count_decisions(self, attempt: Attempt) -> None:
        self.decisions[f"prefill:{attempt.prefill.engine}"] += 1
        self.decisions[f"decode:{attempt.decode.engine}"] += 1
        readers = {s.reader for s in attempt.plan.segments}
        sides = {attempt.prefill_node.node: "prefill", attempt.decode_node.node: "decode"}
        kind = "split" if len(readers) > 1 else next((sides[r] for r in readers), "nothing")
        self.decisions[f"read:{kind}"] += 1

    # time --------------------------------------------------------------------------------------------------------

    def _advance(self, now_ns: int) -> None:
        if self._reading:
            self.any_read_ns += now_ns - self._now_ns
        self._now_ns = now_ns

    def _note_reading(self) -> None:
        self._reading = any(n.read_queue_tokens > 0 for n in self.members.nodes.values())


def _blocks_of(plan: ReadPlan, reader: NodeId) -> tuple[int, ...]:
    return tuple(b for s in plan.segments if s.reader == reader for b in range(s.blocks.start, s.blocks.stop))
