"""Items in order of a rank that changes: the first one at any time, without a look at the others."""

import heapq
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_SLACK = 64


class Ranking(Generic[T]):
    """Ranks are comparable and no two items have equal ones. Setting and asking cost O(log items), amortised.

    A heap in which old ranks stay until they come up, or until they are most of it.
    """

    def __init__(self) -> None:
        self._rank: dict[T, Any] = {}
        self._heap: list[tuple[Any, T]] = []

    def __len__(self) -> int:
        return len(self._rank)

    def __contains__(self, item: T) -> bool:
        return item in self._rank

    def __iter__(self) -> Iterator[T]:
        return iter(self._rank)

    def set(self, item: T, rank: Any) -> None:
        """Put the item in, or elsewhere."""
        if self._rank.get(item) == rank:
            return
        self._rank[item] = rank
        heapq.heappush(self._heap, (rank, item))
        if len(self._heap) > 4 * len(self._rank) + _SLACK:
            self._heap = [(rank, item) for item, rank in self._rank.items()]
            heapq.heapify(self._heap)

    def discard(self, item: T) -> None:
        """Take the item out, if it is in."""
        self._rank.pop(item, None)

    def rank(self, item: T) -> Any:
        """The item's rank; it must be in."""
        return self._rank[item]

    def first(self) -> T | None:
        """The item with the smallest rank; None if there is none."""
        heap, ranks = self._heap, self._rank
        while heap:
            rank, item = heap[0]
            if ranks.get(item) == rank:
                return item
            heapq.heappop(heap)
        return None
