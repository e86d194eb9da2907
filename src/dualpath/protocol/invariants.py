"""What is true of the cluster machine between any two events; for tests."""

from collections.abc import Iterable, Mapping

from dualpath.core.ids import RequestId
from dualpath.core.report import Role
from dualpath.protocol.membership import Engine, Membership
from dualpath.protocol.request import Attempt, Phase
from dualpath.protocol.waiting import WaitingRoom


def check_cluster(
    members: Membership,
    attempts: Mapping[int, Attempt],
    waiting: WaitingRoom,
    running: Mapping[RequestId, int],
) -> None:
    """AssertionError, in words, if slots, loads or lists contradict each other."""
    members.check()
    for node in members.nodes.values():
        node.ledger.check()
    _check_slots(attempts.values())
    for role in Role:
        for engine in members.engines(role):
            _check_load(engine, attempts.values())
    alive = {a.waiting.request: a.grant for a in attempts.values() if a.phase is not Phase.ENDED}
    assert alive == running, "the list of running requests is not that of running attempts"
    assert not {w.request for w in waiting} & running.keys(), "a request waits and runs"
    order = [w.sequence for w in waiting]
    assert order == sorted(set(order)), "waiting requests are not in order of arrival"


def _check_slots(attempts: Iterable[Attempt]) -> None:
    """Every slot of an attempt is its own, and its node's ledger says so."""
    seen: set[tuple[int, int]] = set()
    for attempt in attempts:
        taken = (attempt.prefill_slots, attempt.decode_slots, attempt.relay_slots)
        assert len({node.node for node in attempt.nodes}) == len(attempt.nodes), "a relay that is one of the pair"
        assert attempt.relay_node or not attempt.relay_slots, "slots of no relay"
        for node, slots in zip(attempt.nodes, taken, strict=False):
            for slot in slots:
                assert (id(node), slot) not in seen, f"slot {slot} of {node.node} belongs to two attempts"
                assert node.ledger.holds(slot, attempt.grant), (
                    f"slot {slot} of {node.node} is not grant {attempt.grant}'s"
                )
                seen.add((id(node), slot))


def _check_load(engine: Engine, attempts: Iterable[Attempt]) -> None:
    """An engine's load is that of the attempts that count on it."""
    prefills = [a.waiting.prompt_tokens for a in attempts if a.prefill is engine and a.prefill_counted]
    decodes = [a.waiting.total_tokens for a in attempts if a.decode is engine and a.decode_counted]
    assert engine.requests == len(prefills) + len(decodes), f"{engine.engine} miscounts its requests"
    assert engine.tokens == sum(prefills) + sum(decodes), f"{engine.engine} miscounts its tokens"
