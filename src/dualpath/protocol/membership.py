"""Which nodes and engines there are, what they carry, and whether they are alive (leases)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from dualpath.core.ids import EngineId, NodeId, node_of
from dualpath.core.report import Role
from dualpath.policy.loads import EngineLoad, NodeLoad
from dualpath.protocol.ledger import SlotLedger


@dataclass(slots=True, eq=False)
class Engine:
    """An engine and what was assigned to it and is not completed (paper section 5: seq_e, tok_e)."""

    engine: EngineId
    kv_tokens: int
    process_tokens_per_s: float
    compute_tokens_per_s: float = 0.0  # new tokens only
    requests: int = 0
    tokens: int = 0

    @property
    def wait_s(self) -> float:
        """Until it is through with what was assigned to it; 0 while its rate is unknown."""
        return self.tokens / self.process_tokens_per_s if self.process_tokens_per_s > 0 else 0.0


@dataclass(slots=True, eq=False)
class Node:
    """A node, its ledger, and the tokens in its storage read queue (paper section 5: read_q).

    A node that joins again is a new object: attempts of its former life keep the old one and its ledger.
    """

    node: NodeId
    role: Role
    ledger: SlotLedger
    read_tokens_per_s: float
    lease_ends_ns: int
    read_queue_tokens: int = 0
    read_progress_ns: int = 0  # when a read of it last ended
    engines: dict[EngineId, Engine] = field(default_factory=dict)

    def load(self) -> NodeLoad:
        """The snapshot that read policies see."""
        return NodeLoad(self.node, self.read_queue_tokens, self.read_tokens_per_s)

    def engine_loads(self) -> list[EngineLoad]:
        """The snapshots that engine policies see."""
        return [
            EngineLoad(e.engine, e.requests, e.tokens, self.read_queue_tokens, max(0, e.kv_tokens - e.tokens))
            for e in self.engines.values()
        ]


class Membership:
    """Nodes by id, in order of joining."""

    def __init__(self, lease_ns: int) -> None:
        self._lease_ns = lease_ns
        self.nodes: dict[NodeId, Node] = {}

    def join(self, node: NodeId, role: Role, ledger: SlotLedger, read_tokens_per_s: float, now_ns: int) -> None:
        """Take a node in; it must not be known."""
        assert node not in self.nodes
        self.nodes[node] = Node(node, role, ledger, read_tokens_per_s, now_ns + self._lease_ns)

    def renew(self, node: NodeId, now_ns: int) -> None:
        """A sign of life."""
        self.nodes[node].lease_ends_ns = now_ns + self._lease_ns

    def expired(self, now_ns: int) -> list[NodeId]:
        """Nodes that have been silent for longer than a lease."""
        return [n.node for n in self.nodes.values() if n.lease_ends_ns <= now_ns]

    def next_expiry_ns(self) -> int | None:
        """When the next lease ends."""
        return min((n.lease_ends_ns for n in self.nodes.values()), default=None)

    def of_role(self, role: Role) -> Iterator[Node]:
        """The nodes of one role."""
        return (n for n in self.nodes.values() if n.role is role)

    def engines(self, role: Role) -> Iterator[Engine]:
        """The engines of one role."""
        return (e for n in self.of_role(role) for e in n.engines.values())

    def engine(self, engine: EngineId) -> Engine | None:
        """An engine that is alive, or None."""
        node = self.nodes.get(node_of(engine))
        return node.engines.get(engine) if node else None

    def is_current(self, node: Node) -> bool:
        """Whether this is the node's present life."""
        return self.nodes.get(node.node) is node

    def request_capacity_tokens(self, block_tokens: int) -> int:
        """The longest request (prompt and tokens to come) that fits wherever it may be sent; 0 without engines.

        That is every arena, every prefill engine's window, and one engine's KV memory in every decode group.
        """
        arenas = [n.ledger.capacity * block_tokens for n in self.nodes.values()]
        windows = [e.kv_tokens for e in self.engines(Role.PREFILL)]
        groups = [max(e.kv_tokens for e in n.engines.values()) for n in self.of_role(Role.DECODE) if n.engines]
        return min(arenas + windows + groups) if windows and groups else 0
