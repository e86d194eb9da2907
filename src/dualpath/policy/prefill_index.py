"""The prefill policies on loads that change one node at a time: the same choices without a look at every engine.

policy/prefill.py says what is chosen; these give exactly its answers (property-tested), with the engines in the order
of their nodes' positions.
"""

from collections.abc import Iterable
from typing import Protocol

from dualpath.core.ids import EngineId, NodeId
from dualpath.policy.loads import Limits
from dualpath.policy.ranking import Ranking


class Loaded(Protocol):
    """What is asked of an engine: an EngineLoad will do."""

    @property
    def engine(self) -> EngineId: ...  # noqa: D102

    @property
    def requests(self) -> int: ...  # noqa: D102

    @property
    def tokens(self) -> int: ...  # noqa: D102


class PrefillIndex(Protocol):
    """Told of every node whose loads have changed; `position` orders nodes and does not change."""

    def update(self, node: NodeId, position: int, read_queue_tokens: int, engines: Iterable[Loaded]) -> None:
        """These are the node's engines and loads now."""
        ...

    def remove(self, node: NodeId) -> None:
        """The node is gone."""
        ...

    def choose(self, limits: Limits, turn: int) -> EngineId | None:
        """As the policy of the same name."""
        ...


class LeastTokensShortQueue:
    """choose_prefill: of every node only its best engine can be chosen; nodes are ranked by theirs."""

    def __init__(self) -> None:
        self._best: dict[NodeId, tuple[int, int, int, EngineId]] = {}  # tokens, requests, position, engine
        self._read_queue_tokens: dict[NodeId, int] = {}
        self._all: Ranking[NodeId] = Ranking()
        self._short: Ranking[NodeId] = Ranking()  # by best engine; long ones are moved when they come up
        self._long: Ranking[NodeId] = Ranking()  # by read queue, which was above alpha when it was last looked at

    def update(self, node: NodeId, position: int, read_queue_tokens: int, engines: Iterable[Loaded]) -> None:
        """These are the node's engines and loads now."""
        best = None
        for engine in engines:
            if best is None or (engine.tokens, engine.requests) < (best.tokens, best.requests):
                best = engine
        if best is None:
            self.remove(node)
            return
        rank = (best.tokens, best.requests, position, best.engine)
        self._best[node] = rank
        self._read_queue_tokens[node] = read_queue_tokens
        self._all.set(node, rank)
        self._short.set(node, rank)
        self._long.discard(node)

    def remove(self, node: NodeId) -> None:
        """The node is gone."""
        self._best.pop(node, None)
        self._read_queue_tokens.pop(node, None)
        for ranking in (self._all, self._short, self._long):
            ranking.discard(node)

    def choose(self, limits: Limits, turn: int) -> EngineId | None:
        """The engine with the fewest tokens among those with a short read queue, else among all; None above beta."""
        for node in (self._first_short(limits.alpha_tokens), self._all.first()):
            if node is not None and self._best[node][0] <= limits.beta_tokens:
                return self._best[node][3]
        return None

    def _first_short(self, alpha_tokens: int) -> NodeId | None:
        while (node := self._long.first()) is not None and self._read_queue_tokens[node] <= alpha_tokens:
            self._long.discard(node)
            self._short.set(node, self._best[node])
        while (node := self._short.first()) is not None and self._read_queue_tokens[node] > alpha_tokens:
            self._short.discard(node)
            self._long.set(node, (self._read_queue_tokens[node], self._best[node][2]))
        return node


class RoundRobin:
    """choose_round_robin: each engine in turn."""

    def __init__(self) -> None:
        self._engines: dict[NodeId, tuple[int, list[EngineId]]] = {}
        self._order: list[EngineId] | None = []

    def update(self, node: NodeId, position: int, read_queue_tokens: int, engines: Iterable[Loaded]) -> None:
        """These are the node's engines now."""
        now = (position, [e.engine for e in engines])
        if self._engines.get(node) != now:
            self._engines[node] = now
            self._order = None

    def remove(self, node: NodeId) -> None:
        """The node is gone."""
        self._engines.pop(node, None)
        self._order = None

    def choose(self, limits: Limits, turn: int) -> EngineId | None:
        """The next engine, whatever its load."""
        if self._order is None:
            self._order = [engine for _, engines in sorted(self._engines.values()) for engine in engines]
        return self._order[turn % len(self._order)] if self._order else None


PREFILL_INDEXES: dict[str, type[LeastTokensShortQueue] | type[RoundRobin]] = {
    "least-tokens-short-queue": LeastTokensShortQueue,
    "round-robin": RoundRobin,
}
