"""From waiting requests to attempts: who starts, in which order, on which engines.

Requests are looked at in order of arrival. One starts when the decode policy has placed it, a prefill engine may take
it, and both arenas have all its slots: all or nothing, so nothing that holds slots waits for slots. A request whose
slots are not free may be passed by later ones, but not more often than the limit says, nor more of them at a time;
then all wait for it.

What that means is written down plainly in tests/plain_dispatch.py, as a walk over all requests and all engines. Here
nothing is counted that has not changed: indexes over loads are told of the nodes that have, and of each decode group
only the next request that could start is known. Both start exactly the same attempts.
"""

import heapq
from collections.abc import Iterable

from dualpath.core.ids import EngineId, NodeId
from dualpath.core.report import Role
from dualpath.policy.decode_queue import DecodeQueue
from dualpath.policy.limits import limits_from_rates
from dualpath.policy.loads import Limits
from dualpath.policy.prefill_index import PREFILL_INDEXES, PrefillIndex
from dualpath.policy.ranking import Ranking
from dualpath.protocol.making import AttemptMaker
from dualpath.protocol.membership import Membership, Node
from dualpath.protocol.request import Attempt
from dualpath.protocol.settings import Settings
from dualpath.protocol.waiting import Waiting, WaitingRoom


class Dispatcher:
    """Keeps the waiting requests; start() takes out those that can start."""

    def __init__(self, settings: Settings, maker: AttemptMaker, members: Membership) -> None:
        self._overtake_limit = settings.overtake_limit
        self._maker = maker
        self._members = members
        self.waiting = WaitingRoom()
        self._prefills: PrefillIndex = PREFILL_INDEXES[settings.prefill_policy]()
        self._queues: dict[NodeId, DecodeQueue[Waiting]] = {}  # of decode nodes that have engines
        self._groups: Ranking[NodeId] = Ranking()  # the same, the least loaded first
        self._changed: set[NodeId] = set()  # those whose queue or loads have changed since they were last looked at
        self._open: Ranking[NodeId] = Ranking()  # those whose first request may start, in order of arrival
        self._prefill_full = False  # no prefill engine could take a request when that was last looked at
        self._limits: Limits | None = None
        self._limits_of: tuple[float, float] | None = None

    def add(self, request: Waiting) -> None:
        """One more waits."""
        self.waiting.add(request)

    def remove(self, request: Waiting) -> None:
        """One waits no more."""
        self._take_out(request)
        if request.group in self._queues:
            self._queue_changed(request.group)

    def _take_out(self, request: Waiting) -> None:
        self.waiting.remove(request)
        if request.group in self._queues:
            self._queues[request.group].remove(request.sequence)

    def start(self) -> list[Attempt]:
        """Attempts for those who can start now, their loads counted and their slots taken."""
        if not self.waiting:
            return []
        if self._prefill_full and not self._prefill_may_have_room():
            return []
        self._look_at_decode_nodes()
        self._choose_groups()
        if not self._changed and not self._open:
            return []  # no group has memory for its next request, and none has got any since that was looked at
        prefill = self._choose_prefill()
        if prefill is None:
            return []  # who could start would wait for a prefill engine
        self._look_at_queues()
        started = self._walk(prefill)
        for attempt in started:
            self._take_out(attempt.waiting)  # its group will be looked at: its loads have changed
        return started

    def _prefill_may_have_room(self) -> bool:
        """Or somebody has no group yet; what else has changed can wait until somebody can start."""
        members = self._members
        return bool(
            members.changed[Role.PREFILL]
            or members.engines_changed
            or members.mean_rates() != self._limits_of
            or self.waiting.next_ungrouped()
        )

    # what has changed ------------------------------------------------------------------------------------------------

    def _look_at_decode_nodes(self) -> None:
        """Tell the indexes of all decode nodes whose engines or loads have changed."""
        self._members.engines_changed = False
        changed = self._members.changed[Role.DECODE]
        if not changed:
            return
        for node in self._gone_first(changed):
            if not node.engines or not self._members.is_current(node):
                self._drop_group(node.node)
            else:
                if node.node not in self._queues:
                    self._queues[node.node] = DecodeQueue()
                self._queue_changed(node.node)
        changed.clear()

    def _look_at_prefill_nodes(self) -> None:
        changed = self._members.changed[Role.PREFILL]
        if not changed:
            return
        for node in self._gone_first(changed):
            if self._members.is_current(node):
                self._prefills.update(node.node, node.position, node.read_queue_tokens, node.engines.values())
            else:
                self._prefills.remove(node.node)
        changed.clear()

    def _gone_first(self, nodes: set[Node]) -> Iterable[Node]:
        """Former lives before the present ones of the same names."""
        return sorted(nodes, key=lambda n: n.position) if len(nodes) > 1 else nodes

    def _queue_changed(self, group: NodeId) -> None:
        node = self._members.nodes.get(group)
        if node:  # else it has just gone, and will be dropped
            self._groups.set(group, (node.tokens + self._queues[group].tokens, node.read_queue_tokens, node.position))
            self._changed.add(group)

    def _drop_group(self, group: NodeId) -> None:
        """A decode node without engines: who waited for it needs another one."""
        queue = self._queues.pop(group, None)
        self._groups.discard(group)
        self._open.discard(group)
        self._changed.discard(group)
        for request in queue.requests() if queue else ():
            self.waiting.ungroup(request)

    def _choose_groups(self) -> None:
        """Phase 1 of the decode policy (choose_group) for those without a group."""
        while (request := self.waiting.next_ungrouped()) is not None and (group := self._groups.first()) is not None:
            request.group = group
            self._queues[group].add(request.sequence, request.total_tokens, request)
            self._queue_changed(group)

    def _look_at_queues(self) -> None:
        for group in self._changed:
            if self._queues[group]:
                self._queues[group].update(self._members.nodes[group].engines.values())
                self._open_group(group)
            else:
                self._open.discard(group)
        self._changed.clear()

    def _open_group(self, group: NodeId) -> None:
        sequence = self._queues[group].sequence(0)
        if sequence is None:
            self._open.discard(group)
        else:
            self._open.set(group, sequence)

    def _current_limits(self) -> Limits:
        rates = self._members.mean_rates()
        if self._limits is None or rates != self._limits_of:
            self._limits, self._limits_of = limits_from_rates(*rates), rates
        return self._limits

    # the walk --------------------------------------------------------------------------------------------------------

    def _walk(self, prefill: EngineId | None) -> list[Attempt]:
        """Through the groups' next requests in order of arrival, as far as they can start or may be passed.

        `prefill` is for the first that starts.
        """
        walk = _Walk(self._open)
        while (group := walk.next_group()) is not None:
            placed = self._queues[group].placement(walk.tried.setdefault(group, 0))
            if placed is None:  # no KV memory for it, nor for all behind it there; other groups go on
                continue
            prefill = prefill or self._choose_prefill()
            if prefill is None:
                break
            walk.tried[group] += 1
            walk.put(group, self._queues[group].sequence(walk.tried[group]))
            attempt = self._maker.make(placed.request, prefill, placed.engine)
            if attempt:
                walk.start(attempt)
                prefill = None  # chosen anew for the next, if there is one
            else:
                walk.passed.append(placed.request)
            if walk.must_stop(self._overtake_limit):
                break
        self._reopen(walk.tried)
        return walk.started

    def _choose_prefill(self) -> EngineId | None:
        self._look_at_prefill_nodes()  # attempts that have just been made count
        engine = self._prefills.choose(self._current_limits(), self._maker.made)
        self._prefill_full = engine is None
        return engine

    def _reopen(self, tried: dict[NodeId, int]) -> None:
        """The next walk begins with the first of each group again, if that one can be placed."""
        for group in tried:
            if self._queues[group].placement(0) is not None:
                self._open_group(group)


class _Walk:
    """One walk: which request comes next, who has started, who was passed (their slots are not free)."""

    def __init__(self, first: Ranking[NodeId]) -> None:
        self._first = first  # groups that were not tried, by their first requests
        self._further: list[tuple[int, NodeId]] = []  # heap of the others, by their next ones
        self.tried: dict[NodeId, int] = {}  # how many of each
        self.started: list[Attempt] = []
        self.passed: list[Waiting] = []

    def next_group(self) -> NodeId | None:
        """The group of the next request in order of arrival; it is put back by who tries it."""
        group = self._first.first()
        if group is not None and (not self._further or self._first.rank(group) < self._further[0][0]):
            self._first.discard(group)
            return group
        return heapq.heappop(self._further)[1] if self._further else None

    def put(self, group: NodeId, sequence: int | None) -> None:
        """The group's next request, if it has one."""
        if sequence is not None:
            heapq.heappush(self._further, (sequence, group))

    def start(self, attempt: Attempt) -> None:
        """It passes those who could not start."""
        self.started.append(attempt)
        for earlier in self.passed:
            earlier.overtaken += 1

    def must_stop(self, limit: int) -> bool:
        """Nobody may pass any more."""
        return len(self.passed) > limit or any(w.overtaken >= limit for w in self.passed)
