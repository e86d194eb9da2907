"""Who is connected: sockets, addresses and the last reports of nodes and engines."""

from collections.abc import Mapping
from dataclasses import dataclass

from dualpath.core.ids import EngineId, NodeId, node_of
from dualpath.core.report import EngineStats, NodeStats, Role


@dataclass
class _Entry:
    identity: bytes
    address: str
    role: Role
    opened: int = 0
    stats: NodeStats | None = None


class Roster:
    """Nodes by id and by ZeroMQ identity."""

    def __init__(self) -> None:
        self._entries: dict[NodeId, _Entry] = {}
        self._by_identity: dict[bytes, NodeId] = {}
        self._engine_stats: dict[EngineId, EngineStats] = {}
        self._urls: dict[EngineId, str] = {}

    @property
    def addresses(self) -> Mapping[NodeId, str]:
        """Transport endpoints of all nodes."""
        return {node: entry.address for node, entry in self._entries.items()}

    @property
    def decode_urls(self) -> list[str]:
        """Where decode engines take requests by HTTP, those that do."""
        return [url for e, url in self._urls.items() if url and self._entries[node_of(e)].role is Role.DECODE]

    def join(self, node: NodeId, role: Role, identity: bytes, address: str) -> None:
        """A node is here."""
        self._entries[node] = _Entry(identity, address, role)
        self._by_identity[identity] = node

    def leave(self, node: NodeId) -> None:
        """A node is gone, and its engines with it; later messages of that connection belong to nobody."""
        entry = self._entries.pop(node, None)
        if entry:
            self._by_identity.pop(entry.identity, None)
        for engine in [e for e in self._engine_stats.keys() | self._urls.keys() if node_of(e) == node]:
            self.lose_engine(engine)

    def join_engine(self, engine: EngineId, url: str) -> None:
        """An engine of a node that is here."""
        self._urls[engine] = url

    def lose_engine(self, engine: EngineId) -> None:
        """An engine is gone."""
        self._engine_stats.pop(engine, None)
        self._urls.pop(engine, None)

    def has(self, node: NodeId) -> bool:
        """Whether the node is connected."""
        return node in self._entries

    def node_of(self, identity: bytes) -> NodeId | None:
        """The node behind a connection."""
        return self._by_identity.get(identity)

    def identity(self, node: NodeId) -> bytes | None:
        """The connection to a node."""
        entry = self._entries.get(node)
        return entry.identity if entry else None

    def count_open(self, node: NodeId) -> None:
        """One more grant was opened at the node."""
        if node in self._entries:
            self._entries[node].opened += 1

    def opened(self, node: NodeId) -> int:
        """How many grants were opened at the node since it joined."""
        return self._entries[node].opened

    def note(self, node: NodeId, stats: NodeStats, engines: list[EngineStats]) -> None:
        """Keep the last report."""
        self._entries[node].stats = stats
        self._engine_stats.update({e.engine: e for e in engines})

    def node_stats(self, node: NodeId) -> NodeStats | None:
        """The node's last report."""
        entry = self._entries.get(node)
        return entry.stats if entry else None

    def engine_stats(self, engine: EngineId) -> EngineStats | None:
        """The engine's last report."""
        return self._engine_stats.get(engine)
