"""How much of a hit is worth reading: the rest is computed again, where that ends sooner."""

import math
from collections.abc import Sequence

from dualpath.policy.loads import NodeLoad, ReadChoice
from dualpath.policy.shares import even_shares


def blocks_worth_reading(choice: ReadChoice, readers: Sequence[NodeLoad]) -> int:
    """How many blocks from the hit's start to read, so that its prefill ends soonest; all if rates are unknown.

    The prefill starts when the blocks are read and the engine is free, and then computes what was left out:
    max(read end, wait) + left out / rate. Best to within one block's read by the fastest reader; ties read more.
    """
    blocks, block_tokens = len(choice.hit), choice.block_tokens
    rates = [choice.compute_tokens_per_s, *(n.read_tokens_per_s for n in readers)]
    if not all(0 < rate < math.inf for rate in rates):
        return blocks

    def prefill_end_s(cut: int) -> float:
        read_end_s = even_shares(readers, cut, block_tokens).end_s
        return max(read_end_s, choice.compute_wait_s) + (blocks - cut) * block_tokens / choice.compute_tokens_per_s

    return min(_candidates(choice, readers), key=lambda cut: (prefill_end_s(cut), -cut))


def _candidates(choice: ReadChoice, readers: Sequence[NodeLoad]) -> set[int]:
    """Cuts of which one is best.

    For divisible blocks the end is convex in the cut and made of straight lines, so that only its corners count: where
    another node begins to read, and where reading takes as long as the engine is busy anyway.
    """
    blocks = len(choice.hit)
    if choice.compute_tokens_per_s <= min(n.read_tokens_per_s for n in readers):
        return {0, blocks}  # one more block is always read sooner than computed, once anything is read
    levels_s = [choice.compute_wait_s, *(n.read_queue_tokens / n.read_tokens_per_s for n in readers)]
    corners = {math.floor(_tokens_until(level_s, readers) / choice.block_tokens) for level_s in levels_s}
    return {0, blocks} | {cut for corner in corners for cut in (corner, corner + 1) if cut < blocks}


def _tokens_until(end_s: float, readers: Sequence[NodeLoad]) -> float:
    return sum(max(0.0, end_s * n.read_tokens_per_s - n.read_queue_tokens) for n in readers)
