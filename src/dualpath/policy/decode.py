"""Which decode node, then which decode engine of it, takes a request (paper section 5, "DE choice")."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from dualpath.core.errors import ServiceError
from dualpath.core.ids import NodeId
from dualpath.policy.loads import EngineLoad, Pending, Placement

_NOTHING: Mapping[NodeId, int] = MappingProxyType({})


def choose_group(
    groups: Mapping[NodeId, Sequence[EngineLoad]], queued_tokens: Mapping[NodeId, int] = _NOTHING
) -> NodeId:
    """Phase 1: the node with the fewest total tokens; the request then waits in that node's private queue.

    `queued_tokens` are the tokens that already wait in a node's private queue; they count, or a burst that
    finds all engines full would pile up on one node. Ties go to the shorter read queue, then to the first in
    `groups`. Nodes without engines are passed over; ServiceError when no node has any.
    """

    def load(node: NodeId) -> tuple[int, int]:
        engines = groups[node]
        tokens = sum(engine.tokens for engine in engines) + queued_tokens.get(node, 0)
        return tokens, engines[0].read_queue_tokens

    nodes = [node for node, engines in groups.items() if engines]
    if not nodes:
        raise ServiceError("no decode engine is up; start at least one decode node")
    return min(nodes, key=load)


def choose_decode(group: Sequence[EngineLoad], queue: Sequence[Pending]) -> list[Placement]:
    """Phase 2: engines for as many requests of a group's queue as find memory now, in queue order.

    R is the longest prefix of the queue that fits the group's total free KV memory. A request of R goes to an
    engine with enough free memory: to the one with the fewest requests among those that stay at or below Z =
    1.05 * (tokens of R + tokens of the group) / engines, else to the one with the fewest tokens. The first
    request that fits no single engine ends the list (FIFO). Each placement counts for the next ones. Ties:
    fewest tokens (or requests), then order.

    A request larger than a whole engine would hold up its queue for ever; the caller refuses it on arrival.
    """
    fitting = _fitting_prefix(queue, sum(engine.free_kv_tokens for engine in group))
    total_tokens = sum(pending.tokens for pending in fitting) + sum(engine.tokens for engine in group)
    engines = list(group)
    placements: list[Placement] = []
    for pending in fitting:
        index = _choose_engine(engines, pending.tokens, total_tokens)
        if index is None:
            break
        placements.append(Placement(pending.request, engines[index].engine))
        engines[index] = _with_request(engines[index], pending.tokens)
    return placements


def _fitting_prefix(queue: Sequence[Pending], free_tokens: int) -> Sequence[Pending]:
    """R: the longest prefix of the queue with at most `free_tokens` tokens."""
    for count, pending in enumerate(queue):
        free_tokens -= pending.tokens
        if free_tokens < 0:
            return queue[:count]
    return queue


def _choose_engine(engines: Sequence[EngineLoad], tokens: int, total_tokens: int) -> int | None:
    """Index of the engine for a request of `tokens`; None when none has the memory."""
    able = [i for i, engine in enumerate(engines) if engine.free_kv_tokens >= tokens]
    # 1.05 = 21/20, in whole numbers: an engine exactly at Z is not lost to rounding
    even = [i for i in able if 20 * len(engines) * (engines[i].tokens + tokens) <= 21 * total_tokens]
    if even:
        return min(even, key=lambda i: (engines[i].requests, engines[i].tokens))
    return min(able, key=lambda i: (engines[i].tokens, engines[i].requests), default=None)


def _with_request(engine: EngineLoad, tokens: int) -> EngineLoad:
    return msgspec.structs.replace(
        engine,
        requests=engine.requests + 1,
        tokens=engine.tokens + tokens,
        free_kv_tokens=engine.free_kv_tokens - tokens,
    )
