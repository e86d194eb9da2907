"""The private queue of one decode node: choose_decode's placements, one at a time and without counting R anew.

policy/decode.py says what is chosen; this gives exactly its answers (property-tested). R, the longest prefix of the
queue that fits the node's free memory, is remembered: a start takes as much from the queue as from the memory, so its
end hardly moves between events.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar

from dualpath.core.ids import EngineId
from dualpath.policy.prefill_index import Loaded

T = TypeVar("T")


class Decoding(Loaded, Protocol):
    """What is asked of a decode engine: an EngineLoad will do."""

    @property
    def free_kv_tokens(self) -> int: ...  # noqa: D102


class Placed(NamedTuple, Generic[T]):
    """A request and the engine that takes it."""

    request: T
    engine: EngineId


class DecodeQueue(Generic[T]):
    """Requests in order of their sequence numbers. After a change, update() before placement() is asked."""

    def __init__(self) -> None:
        self.tokens = 0  # of all that wait here
        self._queue: list[tuple[int, int, T]] = []  # sequence, tokens, request
        self._fitting = 0  # how many are in R
        self._fitting_tokens = 0
        self._placed: list[EngineId] = []  # for the first of R; the rest when it is asked for
        self._stuck = False  # the next one fits no engine
        self._engines: list[EngineId] = []
        self._loads: list[tuple[int, int]] = []  # tokens, requests
        self._free: list[int] = []
        self._even_tokens = 0  # Z

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, sequence: int, tokens: int, request: T) -> None:
        """One more waits; a late sequence number may belong before others."""
        at = bisect_left(self._queue, (sequence,))
        self._queue.insert(at, (sequence, tokens, request))
        self.tokens += tokens
        if at < self._fitting:
            self._fitting += 1
            self._fitting_tokens += tokens

    def remove(self, sequence: int) -> None:
        """One waits no more."""
        at = bisect_left(self._queue, (sequence,))
        _, tokens, _ = self._queue.pop(at)
        self.tokens -= tokens
        if at < self._fitting:
            self._fitting -= 1
            self._fitting_tokens -= tokens

    def requests(self) -> list[T]:
        """All that wait, in order."""
        return [request for _, _, request in self._queue]

    def update(self, engines: Iterable[Decoding]) -> None:
        """These are the node's engines and loads now."""
        self._engines, self._loads, self._free, tokens = [], [], [], 0
        for engine in engines:
            self._engines.append(engine.engine)
            self._loads.append((engine.tokens, engine.requests))
            self._free.append(engine.free_kv_tokens)
            tokens += engine.tokens
        self._fit(sum(self._free))
        # 1.05 = 21/20, in whole numbers: an engine exactly at Z is not lost to rounding
        self._even_tokens = 21 * (tokens + self._fitting_tokens) // (20 * max(1, len(self._engines)))
        self._placed.clear()
        self._stuck = False

    def _fit(self, free_tokens: int) -> None:
        queue = self._queue
        while self._fitting_tokens > free_tokens:
            self._fitting -= 1
            self._fitting_tokens -= queue[self._fitting][1]
        while self._fitting < len(queue) and self._fitting_tokens + queue[self._fitting][1] <= free_tokens:
            self._fitting_tokens += queue[self._fitting][1]
            self._fitting += 1

    def sequence(self, index: int) -> int | None:
        """Sequence number of R's request number `index`; None behind the end of R."""
        return self._queue[index][0] if index < self._fitting else None

    def placement(self, index: int) -> Placed[T] | None:
        """Placement number `index`; None when there are not so many. Those before it count as made."""
        while len(self._placed) <= index and not self._stuck:
            self._place_next()
        return Placed(self._queue[index][2], self._placed[index]) if index < len(self._placed) else None

    def _place_next(self) -> None:
        at = len(self._placed)
        if at >= self._fitting:
            self._stuck = True
            return
        tokens = self._queue[at][1]
        best = self._best_engine(tokens)
        if best is None:
            self._stuck = True
            return
        load, requests = self._loads[best]
        self._loads[best] = (load + tokens, requests + 1)
        self._free[best] -= tokens
        self._placed.append(self._engines[best])

    def _best_engine(self, tokens: int) -> int | None:
        """Even requests among engines that stay at or below Z, else even tokens."""
        most = self._even_tokens - tokens
        best, best_rank = None, (2, 0, 0)
        for i, free in enumerate(self._free):
            if free >= tokens:
                load, requests = self._loads[i]
                rank = (0, requests, load) if load <= most else (1, load, requests)
                if rank < best_rank:
                    best, best_rank = i, rank
        return best
