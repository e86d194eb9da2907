"""The requests that wait, in order of arrival; those of a decode group also in its private queue."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from dualpath.core.ids import NodeId, RequestId


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that has no running attempt."""

    request: RequestId
    sequence: int  # order of arrival; kept over attempts
    prompt_tokens: int
    max_tokens: int
    since_ns: int
    group: NodeId | None = None  # the decode group whose private queue it is in
    attempts: int = 0
    overtaken: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and all tokens to come."""
        return self.prompt_tokens + self.max_tokens


class WaitingRoom:
    """Who waits, by id, by age, and who has no group yet. A step costs O(log waiting)."""

    def __init__(self) -> None:
        self._requests: dict[RequestId, Waiting] = {}
        self._ages: list[tuple[int, int, Waiting]] = []  # heap by age; who has gone stays until it comes up
        self._ungrouped: list[tuple[int, Waiting]] = []  # heap by sequence; who has gone or has a group is passed over

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: Waiting) -> bool:
        return self._requests.get(request.request) is request

    def __iter__(self) -> Iterator[Waiting]:
        """In order of arrival; sorts, so not for every event."""
        return iter(sorted(self._requests.values(), key=lambda w: w.sequence))

    def get(self, request: RequestId) -> Waiting | None:
        """The request, if it waits."""
        return self._requests.get(request)

    def add(self, request: Waiting) -> None:
        """One more, without a group."""
        self._requests[request.request] = request
        heapq.heappush(self._ages, (request.since_ns, request.sequence, request))
        self.ungroup(request)

    def remove(self, request: Waiting) -> None:
        """One fewer."""
        del self._requests[request.request]
        self.oldest()  # so that the heap does not grow

    def ungroup(self, request: Waiting) -> None:
        """Its group has vanished; it needs another one."""
        request.group = None
        heapq.heappush(self._ungrouped, (request.sequence, request))

    def next_ungrouped(self) -> Waiting | None:
        """The first in order of arrival that has no group."""
        while self._ungrouped:
            request = self._ungrouped[0][1]
            if request in self and request.group is None:
                return request
            heapq.heappop(self._ungrouped)
        return None

    def oldest(self) -> Waiting | None:
        """Who has waited longest."""
        while self._ages and self._ages[0][2] not in self:
            heapq.heappop(self._ages)
        return self._ages[0][2] if self._ages else None
