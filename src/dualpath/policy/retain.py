"""Which finished requests' blocks stay in the spare DRAM of the nodes that decoded them (paper section 7)."""

from collections import OrderedDict

import msgspec

from dualpath.core.ids import NodeId
from dualpath.core.plan import BlockRange


class Kept(msgspec.Struct, frozen=True):
    """A session's first `blocks` blocks lie in a node's DRAM."""

    node: NodeId
    blocks: int


class Evicted(msgspec.Struct, frozen=True):
    """Blocks of a session that a node keeps no longer."""

    session: str
    node: NodeId
    blocks: BlockRange


class Retention:
    """What all nodes keep: of each session one run from its first block on, on the node that decoded it last.

    A node keeps at most `capacity_blocks`. For room, the session whose last request ended longest ago loses blocks, its
    last ones first: what stays is a prefix, and storage has all that was evicted as long as it has what was generated.
    O(1) a call, and O(1) more for each session that is evicted.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._runs: dict[NodeId, OrderedDict[str, int]] = {}  # of each node by session, the latest last
        self._used: dict[NodeId, int] = {}
        self._places: dict[str, NodeId] = {}

    def find(self, session: str) -> Kept | None:
        """Where the session's blocks are, without any change."""
        node = self._places.get(session)
        return Kept(node, self._runs[node][session]) if node is not None else None

    def keep(self, session: str, node: NodeId, blocks: int) -> list[Evicted]:
        """A request has ended on `node`, whose history has so many blocks: keep as many as fit, in place of older ones.

        What it kept before is replaced: elsewhere that is evicted, here it is the beginning of the new run.
        """
        if not self._capacity:
            return []
        blocks = min(blocks, self._capacity)
        evicted = []
        if self._places.get(session, node) != node:
            evicted.append(self._drop(session))
        runs = self._runs.setdefault(node, OrderedDict())
        old = runs.pop(session, 0)
        if old > blocks:
            evicted.append(Evicted(session, node, BlockRange(blocks, old)))
        self._used[node] = self._used.get(node, 0) - old
        evicted += self._make_room(node, blocks)
        if blocks:
            runs[session] = blocks
            self._places[session] = node
            self._used[node] += blocks
        else:
            self._places.pop(session, None)
        return evicted

    def take(self, session: str) -> Kept | None:
        """The session's next request uses its blocks: they are the caller's now, who frees them after use."""
        kept = self.find(session)
        if kept:
            self._drop(session)
        return kept

    def lose(self, node: NodeId) -> None:
        """The node is gone with all that it kept."""
        for session in self._runs.pop(node, ()):
            del self._places[session]
        self._used.pop(node, None)

    def _make_room(self, node: NodeId, blocks: int) -> list[Evicted]:
        runs, evicted = self._runs[node], []
        while (excess := self._used[node] + blocks - self._capacity) > 0:
            session, kept = next(iter(runs.items()))
            if kept <= excess:
                evicted.append(self._drop(session))
            else:
                runs[session] = kept - excess
                self._used[node] -= excess
                evicted.append(Evicted(session, node, BlockRange(kept - excess, kept)))
        return evicted

    def _drop(self, session: str) -> Evicted:
        node = self._places.pop(session)
        blocks = self._runs[node].pop(session)
        self._used[node] -= blocks
        return Evicted(session, node, BlockRange(0, blocks))
