"""The node that may read for a pair that it is not in: of all others, the one whose read queue ends soonest."""

from dualpath.core.ids import NodeId
from dualpath.policy.ranking import Ranking
from dualpath.protocol.membership import Membership, Node


class SpareReaders:
    """All nodes, of either role, by the ends of their read queues. Costs O(log nodes) for each node that has changed
    since it was last asked; nothing while nobody asks.
    """

    def __init__(self, members: Membership) -> None:
        self._members = members
        self._ends: Ranking[NodeId] = Ranking()

    def besides(self, *pair: Node) -> Node | None:
        """The first one that is not of the pair; None if there is no third node."""
        for node in self._members.reads_changed:
            self._ends.set(node.node, (_end_s(node), node.position))
        self._members.reads_changed.clear()
        ranks = {node.node: self._ends.rank(node.node) for node in pair}
        for name in ranks:
            self._ends.discard(name)
        spare = self._first()
        for name, rank in ranks.items():
            self._ends.set(name, rank)
        return spare

    def _first(self) -> Node | None:
        while (name := self._ends.first()) is not None:
            if name in self._members.nodes:
                return self._members.nodes[name]
            self._ends.discard(name)  # it has left
        return None


def _end_s(node: Node) -> float:
    """A node whose rate is unknown counts as a slow one: it comes first only while it has nothing to read."""
    return node.read_queue_tokens / (node.read_tokens_per_s if node.read_tokens_per_s > 0 else 1.0)
