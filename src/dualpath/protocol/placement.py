"""Waiting requests to decode engines: the policy's two phases, over groups and within each (paper section 5)."""

from collections.abc import Sequence

from dualpath.core.ids import EngineId, RequestId
from dualpath.policy.decode import choose_decode, choose_group
from dualpath.policy.loads import Pending
from dualpath.protocol.membership import Node
from dualpath.protocol.request import Waiting


def place_decodes(waiting: Sequence[Waiting], nodes: Sequence[Node]) -> dict[RequestId, EngineId]:
    """Give every request a group (once), then place each group's queue as far as its KV memory goes."""
    groups = {n.node: n.engine_loads() for n in nodes if n.engines}
    if not groups:
        return {}
    queued = dict.fromkeys(groups, 0)
    for request in waiting:
        if request.group in groups:
            queued[request.group] += request.total_tokens
    for request in waiting:
        if request.group not in groups:
            request.group = choose_group(groups, queued)
            queued[request.group] += request.total_tokens
    placed: dict[RequestId, EngineId] = {}
    for group, loads in groups.items():
        queue = [Pending(w.request, w.total_tokens) for w in waiting if w.group == group]
        placed |= {p.request: p.engine for p in choose_decode(loads, queue)}
    return placed
