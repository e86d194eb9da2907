"""The dispatcher written plainly, for comparison: every start walks all waiting requests, all nodes, all engines."""

from dualpath.core.ids import EngineId, RequestId
from dualpath.core.report import Role
from dualpath.policy.decode import choose_decode, choose_group
from dualpath.policy.limits import limits_from_rates
from dualpath.policy.loads import Limits, Pending
from dualpath.policy.prefill import PREFILL_POLICIES
from dualpath.protocol.making import AttemptMaker
from dualpath.protocol.membership import Membership
from dualpath.protocol.request import Attempt
from dualpath.protocol.settings import Settings
from dualpath.protocol.waiting import Waiting, WaitingRoom


class PlainDispatcher:
    """What protocol/dispatch.py promises, without indexes."""

    def __init__(self, settings: Settings, maker: AttemptMaker, members: Membership) -> None:
        self._settings = settings
        self._maker = maker
        self._members = members
        self.waiting = WaitingRoom()

    def add(self, request: Waiting) -> None:
        self.waiting.add(request)

    def remove(self, request: Waiting) -> None:
        self.waiting.remove(request)

    def start(self) -> list[Attempt]:
        waiting = list(self.waiting)
        placed = self._place_decodes(waiting)
        limits = self._limits()
        started: list[Attempt] = []
        passed: list[Waiting] = []  # their slots are not free
        for request in waiting:
            decode = placed.get(request.request)
            if decode is None:
                continue  # its group's KV memory is full, also for all behind it there; other groups go on
            prefill = self._choose_prefill(limits)
            if prefill is None:
                break
            attempt = self._maker.make(request, prefill, decode)
            if attempt is None:
                passed.append(request)
            else:
                started.append(attempt)
                for earlier in passed:
                    earlier.overtaken += 1
            limit = self._settings.overtake_limit
            if len(passed) > limit or any(w.overtaken >= limit for w in passed):
                break
        for attempt in started:
            self.waiting.remove(attempt.waiting)
        return started

    def _place_decodes(self, waiting: list[Waiting]) -> dict[RequestId, EngineId]:
        """Give every request a group (once), then place each group's queue as far as its KV memory goes."""
        groups = {n.node: n.engine_loads() for n in self._members.of_role(Role.DECODE) if n.engines}
        if not groups:
            return {}
        queued = dict.fromkeys(groups, 0)
        for request in waiting:
            if request.group in groups:
                queued[request.group] += request.total_tokens
        for request in waiting:
            if request.group not in groups:
                request.group = choose_group(groups, queued)
                queued[request.group] += request.total_tokens
        placed: dict[RequestId, EngineId] = {}
        for group, loads in groups.items():
            queue = [Pending(w.request, w.total_tokens) for w in waiting if w.group == group]
            placed |= {p.request: p.engine for p in choose_decode(loads, queue)}
        return placed

    def _limits(self) -> Limits:
        nodes = list(self._members.of_role(Role.PREFILL))
        engines = list(self._members.engines(Role.PREFILL))
        read = sum(n.read_tokens_per_s for n in nodes) / max(1, len(nodes))
        process = sum(e.process_tokens_per_s for e in engines) / max(1, len(engines))
        return limits_from_rates(read, process)

    def _choose_prefill(self, limits: Limits) -> EngineId | None:
        loads = [load for node in self._members.of_role(Role.PREFILL) for load in node.engine_loads()]
        return PREFILL_POLICIES[self._settings.prefill_policy](loads, limits, self._maker.made)
