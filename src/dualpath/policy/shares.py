"""How many blocks each of a few nodes should read, so that the last of them is read soonest."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dualpath.policy.loads import NodeLoad

# Which nodes get blocks, of plans that end equally soon: the third only if need be, then few, then the first
_PREFERRED = ((0,), (1,), (0, 1), (2,), (0, 2), (1, 2), (0, 1, 2))
_ROUNDING = 1e-14  # relative; a few dozen times what floats lose here


class Shares(NamedTuple):
    """Blocks of each node, and when the last of them is read, in seconds (in tokens while rates are unknown)."""

    blocks: list[int]
    end_s: float


def even_shares(nodes: Sequence[NodeLoad], blocks: int, block_tokens: int) -> Shares:
    """The shares of one to three different nodes that minimise the largest (queue + share) / rate of those that read.

    Equal ends: without the third node, then fewer readers, then more for earlier nodes. Rates count as equal while
    any is unknown (not a positive number).
    """
    if blocks == 0:
        return Shares([0] * len(nodes), 0.0)
    rates = [n.read_tokens_per_s for n in nodes]
    if not all(0 < rate < math.inf for rate in rates):
        rates = [1.0] * len(nodes)
    queues = [n.read_queue_tokens for n in nodes]
    end_s = _earliest_end_s(queues, rates, blocks, block_tokens)
    room = [_blocks_until(end_s * (1 + _ROUNDING), q, r, block_tokens) for q, r in zip(queues, rates, strict=True)]
    shares = [0] * len(nodes)
    for i in _fewest(room, blocks):
        shares[i] = min(room[i], blocks - sum(shares))
    return Shares(shares, end_s)


def _fewest(room: list[int], blocks: int) -> tuple[int, ...]:
    """The first preferred set of nodes that together have room for all blocks."""
    return next(some for some in _PREFERRED if some[-1] < len(room) and sum(room[i] for i in some) >= blocks)


def _earliest_end_s(queues: list[int], rates: list[float], blocks: int, block_tokens: int) -> float:
    """When the last block is read at best.

    Were blocks divisible, all readers would end together, at a level. Each surely gets its whole blocks below it; the
    few that are left go one by one to the node that ends soonest with them.
    """
    level_s = _level_s(queues, rates, blocks * block_tokens) * (1 - _ROUNDING)
    shares = [_blocks_until(level_s, q, r, block_tokens) for q, r in zip(queues, rates, strict=True)]

    def end_s(i: int, more: int) -> float:
        return (queues[i] + (shares[i] + more) * block_tokens) / rates[i]

    for _ in range(blocks - sum(shares)):
        shares[min(range(len(shares)), key=lambda i: end_s(i, 1))] += 1
    return max(end_s(i, 0) for i in range(len(shares)) if shares[i])


def _level_s(queues: list[int], rates: list[float], tokens: int) -> float:
    """When `tokens`, poured over the queues, have all been read: nodes with a longer queue than that get none."""
    level_s = math.inf
    queued, rate = tokens, 0.0
    for i in sorted(range(len(queues)), key=lambda i: queues[i] / rates[i]):
        if queues[i] / rates[i] >= level_s:
            break
        queued += queues[i]
        rate += rates[i]
        level_s = queued / rate
    return level_s


def _blocks_until(end_s: float, queue_tokens: int, rate: float, block_tokens: int) -> int:
    return max(0, math.floor((end_s * rate - queue_tokens) / block_tokens))
