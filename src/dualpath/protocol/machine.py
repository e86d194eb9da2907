"""The cluster's brain as a pure machine: events in, commands out; no clock, no socket, no randomness.

Theory of operation. Requests wait in order of arrival. Whenever something changes, the dispatcher
(protocol/dispatch.py) walks the waiting ones: the decode policy places them within their group, the prefill policy
names a prefill engine, the driver's `look_up` tells which blocks are cached, the read policy plans who reads them, and
if the arenas have the slots (all or nothing) an attempt starts. Later events move the attempt through its phases
(protocol/request.py). Loads are what was assigned and is not completed, in-flight included; reports only correct them
(paper section 5).

The driver keeps its promises in turn: events of one node come in the order in which that node sent them; a request id
is not submitted again while it waits or runs; a node that joins again has ended all that it did in its former life and
lets nobody write into its arena under a grant from then.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any

from dualpath.core.ids import EngineId, NodeId, RequestId, node_of
from dualpath.core.request import FinishReason
from dualpath.protocol import events as ev
from dualpath.protocol.dispatch import Dispatcher
from dualpath.protocol.invariants import check_cluster
from dualpath.protocol.ledger import SlotLedger
from dualpath.protocol.making import AttemptMaker, Hit, LookUp
from dualpath.protocol.membership import Engine, Membership, Node
from dualpath.protocol.request import Attempt, Phase
from dualpath.protocol.settings import Settings
from dualpath.protocol.waiting import Waiting

__all__ = ["ClusterMachine", "Hit", "LookUp", "Settings"]

# Frequent events that let no waiting request start: they free neither slots nor load (but for retained blocks).
_FREE_NOTHING = frozenset((
    ev.ReadsAdvanced, ev.ReadsFinished, ev.CopyFinished, ev.FetchFinished, ev.PrefillStarted, ev.DecodeStarted,
    ev.BlockHeld,
))  # fmt: skip

# What each event calls
_ON = {
    ev.NodeJoined: "_node_joined",
    ev.NodeReported: "_node_reported",
    ev.EngineReported: "_engine_reported",
    ev.NodeLost: "_node_lost",
    ev.EngineJoined: "_engine_joined",
    ev.EngineLost: "_engine_lost",
    ev.RequestArrived: "_arrived",
    ev.RequestCancelled: "_cancelled",
    ev.ReadsAdvanced: "_reads_advanced",
    ev.ReadsFinished: "_reads_finished",
    ev.PrefillStarted: "_prefill_started",
    ev.CopyFinished: "_copy_finished",
    ev.FetchFinished: "_fetch_finished",
    ev.PrefillFinished: "_prefill_finished",
    ev.DecodeStarted: "_decode_started",
    ev.DecodeFinished: "_decode_finished",
    ev.StepFailed: "_step_failed",
    ev.BlockHeld: "_block_held",
    ev.BlockWritten: "_block_written",
    ev.Released: "_released",
}


class ClusterMachine:
    """Feed it with receive() and on_timeout(), then carry out what drain() returns."""

    def __init__(self, settings: Settings, look_up: LookUp) -> None:
        self._settings = settings
        self.members = Membership(settings.lease_ns)
        self.attempts: dict[int, Attempt] = {}
        self.recomputes: Counter[str] = Counter()
        self.any_read_ns = 0  # time in which any planned read was waiting or running
        self._maker = AttemptMaker(settings, look_up, self.members)
        self._dispatcher = Dispatcher(settings, self._maker, self.members)
        self.decisions = self._maker.decisions  # by kind: "prefill:p0/0", "decode:d0/0", "read:split"
        self.waiting = self._dispatcher.waiting  # requests that have no running attempt
        self._handlers: dict[type, Callable[[Any], None]] = {kind: getattr(self, name) for kind, name in _ON.items()}
        self._running: dict[RequestId, int] = {}
        self._deadlines: list[tuple[int, int]] = []  # heap of (deadline, grant); stale entries are put back
        self._commands: list[ev.Command] = []
        self._arrivals = 0
        self._now_ns = 0
        self._capacity_tokens = 0  # what a request was last held against
        self._unchecked: list[Waiting] = []  # those that were not

    # the interface of every machine ------------------------------------------------------------------------------

    def receive(self, event: ev.Event, *, now_ns: int) -> None:
        """Something happened."""
        self._advance(now_ns)
        kind = type(event)
        handle = self._handlers.get(kind)
        if handle is None:
            raise TypeError(f"no such event: {event!r}")
        handle(event)
        if kind not in _FREE_NOTHING:
            self._dispatch()

    def on_timeout(self, *, now_ns: int) -> None:
        """A deadline may have passed."""
        self._advance(now_ns)
        for node in self.members.expired(now_ns):
            self._node_lost(ev.NodeLost(node))
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, grant = heapq.heappop(self._deadlines)
            if grant in self.attempts:
                self._check_deadline(self.attempts[grant])
        self._fail_overdue()
        self._dispatch()

    def _fail_overdue(self) -> None:
        deadline_ns = self._settings.waiting_deadline_ns
        while (request := self.waiting.oldest()) and request.since_ns + deadline_ns <= self._now_ns:
            seconds = deadline_ns / 1e9
            message = f"not served within {seconds:g} s for lack of engines or arena slots; try again later"
            self._fail(request, message, by_request=False)

    def next_timeout_ns(self) -> int | None:
        """When on_timeout should be called next."""
        times = [t for t in (self.members.next_expiry_ns(),) if t is not None]
        while self._deadlines and self._deadlines[0][1] not in self.attempts:
            heapq.heappop(self._deadlines)
        if self._deadlines:
            times.append(self._deadlines[0][0])
        if oldest := self.waiting.oldest():
            times.append(oldest.since_ns + self._settings.waiting_deadline_ns)
        return min(times, default=None)

    def drain(self) -> list[ev.Command]:
        """Commands since the last call, in order."""
        commands, self._commands = self._commands, []
        return commands

    def is_prefilling(self, grant: int) -> bool:
        """Whether the attempt runs and waits for its prefill: only then are its decode slots still what it says."""
        attempt = self.attempts.get(grant)
        return attempt is not None and attempt.phase is Phase.PREFILLING

    def check(self) -> None:
        """Invariants; for tests, after every event."""
        check_cluster(self.members, self.attempts, self.waiting, self._running)

    # nodes and engines -------------------------------------------------------------------------------------------

    def _node_joined(self, event: ev.NodeJoined) -> None:
        ledger = SlotLedger(event.slots, event.write_slots)
        self._node_lost(ev.NodeLost(event.node))
        for attempt in list(self.attempts.values()):
            if event.node in attempt.unreleased:  # of its former life: whatever that did has ended
                self._let_go(attempt, event.node)
        self.members.join(event.node, event.role, ledger, event.read_tokens_per_s, self._now_ns)

    def _node_reported(self, event: ev.NodeReported) -> None:
        node = self.members.nodes.get(event.node)
        if node:
            self.members.renew(event.node, self._now_ns)
            self.members.report_reads(node, event.read_tokens_per_s)
            if event.read_queue_tokens is not None:
                node.queue_reads(event.read_queue_tokens)

    def _engine_reported(self, event: ev.EngineReported) -> None:
        self.members.report_engine(event.engine, event.process_tokens_per_s, event.compute_tokens_per_s)

    def _node_lost(self, event: ev.NodeLost) -> None:
        node = self.members.leave(event.node)
        if node is None:
            return
        for attempt in list(self.attempts.values()):
            if attempt.needs(node):
                self._retry(attempt, "node lost")
            if attempt.pushing_from(node):  # perhaps only we have lost it; until it joins again or must have stopped
                self._arm(attempt, self._settings.release_deadline_ns)
            elif node in attempt.nodes:
                self._let_go(attempt, event.node)

    def _engine_joined(self, event: ev.EngineJoined) -> None:
        node = self.members.nodes.get(node_of(event.engine))
        if node:
            self._lose_engine(node, event.engine)
            rates = (event.process_tokens_per_s, event.compute_tokens_per_s)
            self.members.add_engine(node, Engine(event.engine, event.kv_tokens, *rates))

    def _engine_lost(self, event: ev.EngineLost) -> None:
        node = self.members.nodes.get(node_of(event.engine))
        if node:
            self._lose_engine(node, event.engine)

    def _lose_engine(self, node: Node, engine_id: EngineId) -> None:
        engine = self.members.remove_engine(node, engine_id)
        if engine is None:
            return
        for attempt in list(self.attempts.values()):
            needs_prefill = attempt.phase in (Phase.LOADING, Phase.PREFILLING)
            if attempt.decode is engine or (attempt.prefill is engine and needs_prefill):
                self._retry(attempt, "engine lost")

    # requests ----------------------------------------------------------------------------------------------------

    def _arrived(self, event: ev.RequestArrived) -> None:
        self._arrivals += 1
        self._wait(Waiting(event.request, self._arrivals, event.prompt_tokens, event.max_tokens, self._now_ns))

    def _wait(self, request: Waiting) -> None:
        self._dispatcher.add(request)
        self._unchecked.append(request)

    def _cancelled(self, event: ev.RequestCancelled) -> None:
        waiting = self.waiting.get(event.request)
        if waiting:
            self._dispatcher.remove(waiting)
        grant = self._running.get(event.request)
        if grant is not None:
            self._end(self.attempts[grant])

    def _reads_advanced(self, event: ev.ReadsAdvanced) -> None:
        node = self.members.nodes.get(event.node)
        if node:
            node.read_progress_ns = self._now_ns
            attempt = self._alive(event.grant)
            if attempt:
                attempt.uncount_reads(node, event.blocks, self._settings.block_tokens)

    def _reads_finished(self, event: ev.ReadsFinished) -> None:
        attempt = self._alive(event.grant)
        if attempt is None or event.node not in attempt.loading:
            return
        attempt.loading.discard(event.node)
        frees = False
        if event.node == attempt.decode_node.node:
            frees = bool(attempt.sources)
            attempt.drop_sources()
        elif event.node != attempt.prefill_node.node:
            self._commands.append(ev.StartFetch(attempt.grant, attempt.decode_node.node))
        elif not attempt.copied:
            self._commands.append(ev.StartPull(attempt.grant, attempt.decode_node.node))
        self._start_prefill(attempt)
        if frees:
            self._dispatch()

    def _fetch_finished(self, event: ev.FetchFinished) -> None:
        attempt = self._alive(event.grant)
        relay = attempt.relay_node if attempt else None
        if attempt and relay and not attempt.fetched and relay.node not in attempt.loading:
            attempt.fetched = True
            self._release(attempt, relay)
            self._start_prefill(attempt)

    def _start_prefill(self, attempt: Attempt) -> None:
        """If the hit is there."""
        if attempt.fetched and not attempt.loading:
            attempt.phase = Phase.PREFILLING
            attempt.pushing = True
            self._commands.append(ev.StartPrefill(attempt.grant, attempt.prefill.engine))

    def _prefill_started(self, event: ev.PrefillStarted) -> None:
        self._alive(event.grant)

    def _copy_finished(self, event: ev.CopyFinished) -> None:
        attempt = self._alive(event.grant)
        if attempt and not attempt.copied:
            attempt.copied = True
            if attempt.phase is Phase.HANDOFF:
                self._start_decode(attempt)

    def _prefill_finished(self, event: ev.PrefillFinished) -> None:
        attempt = self._alive(event.grant)
        if attempt is None or attempt.phase is not Phase.PREFILLING:
            return
        attempt.uncount_prefill()
        attempt.phase = Phase.HANDOFF
        attempt.pushing = False
        if event.reason is not None:
            self._finish(attempt, event.reason, 1)
        elif attempt.copied:
            self._start_decode(attempt)

    def _start_decode(self, attempt: Attempt) -> None:
        attempt.phase = Phase.DECODING
        self._commands.append(ev.StartDecode(attempt.grant, attempt.decode.engine))
        self._release(attempt, attempt.prefill_node)

    def _decode_started(self, event: ev.DecodeStarted) -> None:
        self._alive(event.grant)

    def _decode_finished(self, event: ev.DecodeFinished) -> None:
        attempt = self._alive(event.grant)
        if attempt and attempt.phase is Phase.DECODING:
            self._finish(attempt, event.reason, event.completion_tokens)

    def _step_failed(self, event: ev.StepFailed) -> None:
        attempt = self._alive(event.grant)
        if attempt:
            self._retry(attempt, event.cause)

    # slots -------------------------------------------------------------------------------------------------------

    def _block_held(self, event: ev.BlockHeld) -> None:
        self._alive(event.grant)  # a long generation shows its progress so
        attempt = self.attempts.get(event.grant)
        if attempt and event.slot in attempt.decode_slots:
            attempt.decode_node.ledger.begin_write(event.slot)

    def _block_written(self, event: ev.BlockWritten) -> None:
        node = self.members.nodes.get(event.node)
        if node:
            node.ledger.end_write(event.slot)

    def _released(self, event: ev.Released) -> None:
        attempt = self.attempts.get(event.grant)
        if attempt and event.node in attempt.releasing:
            self._let_go(attempt, event.node)

    def _let_go(self, attempt: Attempt, node: NodeId) -> None:
        attempt.let_go(node)
        attempt.releasing.discard(node)
        if not attempt.unreleased:
            self.attempts.pop(attempt.grant, None)

    def _release(self, attempt: Attempt, node: Node) -> None:
        name = node.node
        if name in attempt.unreleased and name not in attempt.releasing and self.members.is_current(node):
            attempt.releasing.add(name)
            self._commands.append(ev.Release(attempt.grant, name))

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
        attempt.phase = Phase.ENDED
        del self._running[attempt.waiting.request]
        for node in attempt.nodes:
            attempt.uncount_reads(node, attempt.reads_left[node.node], self._settings.block_tokens)
            self._release(attempt, node)
        self._arm(attempt, self._settings.release_deadline_ns)

    def _retry(self, attempt: Attempt, cause: str) -> None:
        """End a running attempt and queue its request for another one; what follows ":" in `cause` is detail."""
        if attempt.phase is Phase.ENDED:
            return
        self._end(attempt)
        self.recomputes[cause.partition(":")[0]] += 1
        request = attempt.waiting
        self._wait(request)
        if request.attempts >= self._settings.max_attempts:
            message = f"gave up after {request.attempts} attempts; the last one failed: {cause}"
            self._fail(request, message, by_request=False)

    def _fail(self, request: Waiting, message: str, *, by_request: bool) -> None:
        self._dispatcher.remove(request)
        self._commands.append(ev.FailRequest(request.request, message, by_request))

    # starts of attempts ------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if not self.waiting:
            self._unchecked.clear()
            return
        self._refuse_oversized()
        for attempt in self._dispatcher.start():
            self.attempts[attempt.grant] = attempt
            self._running[attempt.waiting.request] = attempt.grant
            self._arm(attempt, self._settings.stage_deadline_ns)
            self._commands.append(attempt.assignment())

    def _refuse_oversized(self) -> None:
        """What could never start would hold up all others; looked at again when smaller engines have joined."""
        capacity = self.members.request_capacity_tokens(self._settings.block_tokens)
        if capacity != self._capacity_tokens:
            self._capacity_tokens = capacity
            self._unchecked = list(self.waiting)
        if not self._unchecked:
            return
        for request in self._unchecked:
            if 0 < capacity < request.total_tokens and request in self.waiting:
                needs = f"prompt and max_tokens need {request.total_tokens} tokens"
                self._fail(request, f"{needs}; this cluster holds {capacity} a request", by_request=True)
        self._unchecked.clear()

    # time --------------------------------------------------------------------------------------------------------

    def _arm(self, attempt: Attempt, within_ns: int) -> None:
        attempt.deadline_ns = self._now_ns + within_ns
        heapq.heappush(self._deadlines, (attempt.deadline_ns, attempt.grant))

    def _check_deadline(self, attempt: Attempt) -> None:
        deadline_ns = max([attempt.deadline_ns, *self._read_deadlines(attempt)])
        if deadline_ns > self._now_ns:
            heapq.heappush(self._deadlines, (deadline_ns, attempt.grant))
        elif attempt.phase is Phase.ENDED:
            self._release_again(attempt)
        else:
            self._retry(attempt, "deadline")

    def _read_deadlines(self, attempt: Attempt) -> list[int]:
        """A read that waits behind others of its node is not stuck while those advance."""
        if attempt.phase is not Phase.LOADING:
            return []
        waited_for = [node for node in attempt.nodes if attempt.reads_left[node.node]]
        return [node.read_progress_ns + self._settings.stage_deadline_ns for node in waited_for]

    def _release_again(self, attempt: Attempt) -> None:
        """Ask again who has not answered; who is lost has by now stopped writing."""
        self._arm(attempt, self._settings.release_deadline_ns)
        for node in attempt.nodes:
            attempt.releasing.discard(node.node)
            if self.members.is_current(node):
                self._release(attempt, node)
            elif node.node in attempt.unreleased:
                self._let_go(attempt, node.node)

    def _advance(self, now_ns: int) -> None:
        if self.members.reading:  # since the last event
            self.any_read_ns += now_ns - self._now_ns
        self._now_ns = now_ns
