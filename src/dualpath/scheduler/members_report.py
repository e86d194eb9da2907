"""Nodes and engines in a report: what each last said of itself, with what the machine knows better."""

from dualpath.core.config import Config
from dualpath.core.report import EngineStats, NodeStats, Role
from dualpath.protocol.membership import Membership
from dualpath.scheduler.roster import Roster


def nodes(members: Membership, roster: Roster) -> list[NodeStats]:
    """Every node, with the slots that are promised."""
    found = []
    for node in members.nodes.values():
        stats = roster.node_stats(node.node) or NodeStats(node.node, node.role)
        stats.arena_slots, stats.arena_slots_used = node.ledger.slots, node.ledger.used
        found.append(stats)
    return found


def engines(members: Membership, roster: Roster) -> list[EngineStats]:
    """Every engine, with what it was given."""
    found = []
    for role in Role:
        for engine in members.engines(role):
            stats = roster.engine_stats(engine.engine) or EngineStats(engine.engine, role)
            stats.requests, stats.tokens = engine.requests, engine.tokens
            found.append(stats)
    return found


def missing(expected: Config, members: Membership) -> list[str]:
    """Who has not joined, in words."""
    nodes = [f"node {n}" for n in expected.nodes if n not in members.nodes]
    return nodes + [f"engine {e}" for e in expected.engines if members.engine(e) is None]
