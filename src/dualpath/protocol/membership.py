"""Which nodes and engines there are, what they carry, and whether they are alive (leases)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from dualpath.core.ids import EngineId, NodeId, node_of
from dualpath.core.report import Role
from dualpath.policy.loads import EngineLoad, NodeLoad
from dualpath.policy.ranking import Ranking
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
    free_kv_tokens: int = field(init=False)  # memory that is promised to nobody

    def __post_init__(self) -> None:
        self.count(0, 0)

    def count(self, requests: int, tokens: int) -> None:
        """So much more (or less) is assigned to it."""
        self.requests += requests
        self.tokens += tokens
        self.free_kv_tokens = max(0, self.kv_tokens - self.tokens)

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
    position: int  # order of joining, over all lives of all nodes
    changed: "set[Node]"  # where it is put when its loads or engines have changed
    reading: "set[Node]"  # where it is while its read queue is not empty
    reads_changed: "set[Node]"  # where it is put when its read queue or rate has changed
    tokens: int = 0  # of its engines
    read_queue_tokens: int = 0
    read_progress_ns: int = 0  # when a read of it last ended
    engines: dict[EngineId, Engine] = field(default_factory=dict)

    def count(self, engine: Engine, requests: int, tokens: int) -> None:
        """So much more (or less) is assigned to the engine; one that is gone counts no more for the node."""
        engine.count(requests, tokens)
        if self.engines.get(engine.engine) is engine:
            self.tokens += tokens
            self.changed.add(self)

    def queue_reads(self, tokens: int) -> None:
        """The storage read queue is so long now."""
        if tokens != self.read_queue_tokens:
            self.read_queue_tokens = tokens
            self.changed.add(self)
            self.reads_changed.add(self)
            (self.reading.add if tokens > 0 else self.reading.discard)(self)

    def load(self) -> NodeLoad:
        """The snapshot that read policies see."""
        return NodeLoad(self.node, self.read_queue_tokens, self.read_tokens_per_s)

    def engine_loads(self) -> list[EngineLoad]:
        """The snapshots that engine policies see."""
        return [
            EngineLoad(e.engine, e.requests, e.tokens, self.read_queue_tokens, e.free_kv_tokens)
            for e in self.engines.values()
        ]


class Membership:
    """Nodes by id, in order of joining. Remembers whose loads have changed, for indexes over them."""

    def __init__(self, lease_ns: int) -> None:
        self._lease_ns = lease_ns
        self._lives = 0
        self._leases: Ranking[NodeId] = Ranking()  # by their ends
        self._capacity_tokens: int | None = None  # None: to be counted anew
        self._rates: dict[NodeId, tuple[float, float, int]] = {}  # prefill nodes: reads, its engines' sum, engines
        self._mean_rates: tuple[float, float] | None = None
        self.nodes: dict[NodeId, Node] = {}
        self.changed: dict[Role, set[Node]] = {role: set() for role in Role}  # also who has left; who looks empties it
        self.engines_changed = False  # set when nodes or engines have come or gone; who looks clears it
        self.reading: set[Node] = set()  # nodes with storage reads that wait or run
        self.reads_changed: set[Node] = set()  # nodes whose read queue or rate has; who looks empties it

    def join(self, node: NodeId, role: Role, ledger: SlotLedger, read_tokens_per_s: float, now_ns: int) -> None:
        """Take a node in; it must not be known."""
        assert node not in self.nodes
        self._lives += 1
        sets = self.changed[role], self.reading, self.reads_changed
        new = self.nodes[node] = Node(node, role, ledger, read_tokens_per_s, self._lives, *sets)
        self.reads_changed.add(new)
        self.renew(node, now_ns)
        self._note_engines(new)

    def leave(self, node: NodeId) -> Node | None:
        """The node is gone. What ends of its work from now on concerns no index."""
        gone = self.nodes.pop(node, None)
        if gone:
            self._leases.discard(node)
            self._rates.pop(node, None)
            self._note_engines(gone)
            self.reading.discard(gone)
            self.reads_changed.discard(gone)
            gone.changed, gone.reading, gone.reads_changed = set(), set(), set()
        return gone

    def renew(self, node: NodeId, now_ns: int) -> None:
        """A sign of life."""
        self._leases.set(node, (now_ns + self._lease_ns, self.nodes[node].position))

    def expired(self, now_ns: int) -> list[NodeId]:
        """Nodes that have been silent for longer than a lease."""
        ends_ns = self.next_expiry_ns()
        if ends_ns is None or ends_ns > now_ns:
            return []
        return [n for n in self.nodes if self._leases.rank(n)[0] <= now_ns]

    def next_expiry_ns(self) -> int | None:
        """When the next lease ends."""
        node = self._leases.first()
        return None if node is None else self._leases.rank(node)[0]

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

    # engines and rates -----------------------------------------------------------------------------------------------

    def add_engine(self, node: Node, engine: Engine) -> None:
        """The node has this engine now; none of its name before."""
        assert engine.engine not in node.engines
        node.engines[engine.engine] = engine
        node.tokens += engine.tokens
        self._note_engines(node)

    def remove_engine(self, node: Node, engine: EngineId) -> Engine | None:
        """The engine is gone, if it was there."""
        gone = node.engines.pop(engine, None)
        if gone:
            node.tokens -= gone.tokens
            self._note_engines(node)
        return gone

    def report_reads(self, node: Node, read_tokens_per_s: float) -> None:
        """The rate at which the node was measured to read."""
        if node.read_tokens_per_s != read_tokens_per_s:
            node.read_tokens_per_s = read_tokens_per_s
            self.reads_changed.add(node)
            self._note_rates(node)

    def report_engine(self, engine: EngineId, process_tokens_per_s: float, compute_tokens_per_s: float) -> None:
        """The rates at which an engine was measured to work; one that is gone has none."""
        node, known = self.nodes.get(node_of(engine)), self.engine(engine)
        if node and known:
            known.compute_tokens_per_s = compute_tokens_per_s
            if known.process_tokens_per_s != process_tokens_per_s:
                known.process_tokens_per_s = process_tokens_per_s
                self._note_rates(node)

    def mean_rates(self) -> tuple[float, float]:
        """Tokens a second that a prefill node reads and that a prefill engine gets through; 0 without any."""
        if self._mean_rates is None:
            rows = self._rates.values()
            engines = sum([row[2] for row in rows])
            reads, processed = sum([row[0] for row in rows]), sum([row[1] for row in rows])
            self._mean_rates = reads / max(1, len(rows)), processed / max(1, engines)
        return self._mean_rates

    def request_capacity_tokens(self, block_tokens: int) -> int:
        """The longest request (prompt and tokens to come) that fits wherever it may be sent; 0 without engines.

        That is every arena, every prefill engine's window, and one engine's KV memory in every decode group.
        """
        if self._capacity_tokens is None:
            arenas = [n.ledger.capacity * block_tokens for n in self.nodes.values()]
            windows = [e.kv_tokens for e in self.engines(Role.PREFILL)]
            groups = [max(e.kv_tokens for e in n.engines.values()) for n in self.of_role(Role.DECODE) if n.engines]
            self._capacity_tokens = min(arenas + windows + groups) if windows and groups else 0
        return self._capacity_tokens

    def _note_engines(self, node: Node) -> None:
        self.changed[node.role].add(node)
        self.engines_changed = True
        self._capacity_tokens = None
        self._note_rates(node)

    def _note_rates(self, node: Node) -> None:
        if node.role is Role.PREFILL and self.is_current(node):
            processed = [e.process_tokens_per_s for e in node.engines.values()]
            self._rates[node.node] = (node.read_tokens_per_s, sum(processed), len(processed))
        self._mean_rates = None

    def check(self) -> None:
        """What is remembered agrees with the nodes."""
        nodes = self.nodes.values()
        assert self.reading == {n for n in nodes if n.read_queue_tokens > 0}, "nodes that read are miscounted"
        assert set(self._leases) == set(self.nodes), "leases of others than the nodes"
        assert all(n.tokens == sum(e.tokens for e in n.engines.values()) for n in nodes), "tokens are miscounted"
        ends_ns = [self._leases.rank(n)[0] for n in self.nodes]
        assert self.next_expiry_ns() == min(ends_ns, default=None), "not the next lease"
        rates = [n.read_tokens_per_s for n in self.of_role(Role.PREFILL)]
        assert math.isclose(self.mean_rates()[0] * len(rates), sum(rates)), "rates are miscounted"
