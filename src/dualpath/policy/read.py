"""Who reads a request's hit from storage: the prefill node, the decode node or both (paper section 5)."""

import math
from collections.abc import Callable

from dualpath.core.plan import BlockRange, ReadPlan, ReadSegment
from dualpath.policy.loads import ReadChoice

ReadPolicy = Callable[[ReadChoice], ReadPlan]
"""A pure function of the snapshot."""


def prefill_only(choice: ReadChoice) -> ReadPlan:
    """The classic path, and the baseline: the prefill node reads all."""
    return _plan(choice, len(choice.hit))


def round_robin(choice: ReadChoice) -> ReadPlan:
    """Whole hits, by the prefill node on even turns and by the decode node on odd ones."""
    return _plan(choice, 0 if choice.turn % 2 else len(choice.hit))


def shorter_queue(choice: ReadChoice) -> ReadPlan:
    """The paper's: the whole hit by the node with fewer tokens in its read queue.

    A tie goes to the prefill node. Either way the hit crosses the compute network once, but what the prefill
    node read it can use at once, while the copy to the decode node has until the end of the prefill.
    """
    decode_reads = choice.decode.read_queue_tokens < choice.prefill.read_queue_tokens
    return _plan(choice, 0 if decode_reads else len(choice.hit))


def split(choice: ReadChoice) -> ReadPlan:
    """Both nodes read, in the shares that end soonest (the paper's future work).

    Minimises the larger of (queue + share) / rate over the nodes that get blocks. Equal plans: the one with
    fewer segments, then the one with more blocks for the prefill node. Rates count as equal while either is
    unknown (not a positive number).
    """
    prefill, decode, block_tokens = choice.prefill, choice.decode, choice.block_tokens
    rates = (prefill.read_tokens_per_s, decode.read_tokens_per_s)
    prefill_rate, decode_rate = rates if all(0 < rate < math.inf for rate in rates) else (1.0, 1.0)
    blocks = len(choice.hit)

    # Prefill share x where both finish together: (queue_p + x) / rate_p = (queue_d + hit - x) / rate_d
    decode_all_tokens = decode.read_queue_tokens + blocks * block_tokens
    ahead = prefill_rate * decode_all_tokens - decode_rate * prefill.read_queue_tokens
    level = math.floor(ahead / ((prefill_rate + decode_rate) * block_tokens))

    def finish_s(prefill_blocks: int) -> float:
        prefill_tokens = prefill.read_queue_tokens + prefill_blocks * block_tokens
        decode_tokens = decode_all_tokens - prefill_blocks * block_tokens
        return max(prefill_tokens / prefill_rate, decode_tokens / decode_rate)

    # Level beyond an end of the hit: one queue alone outlasts the other node reading all, so that one does.
    candidates = {min(max(k, 0), blocks) for k in (level, level + 1)}
    best = min(candidates, key=lambda k: (finish_s(k), 0 < k < blocks, -k))
    return _plan(choice, best)


READ_POLICIES: dict[str, ReadPolicy] = {
    "prefill-only": prefill_only,
    "round-robin": round_robin,
    "shorter-queue": shorter_queue,
    "split": split,
}


def _plan(choice: ReadChoice, prefill_blocks: int) -> ReadPlan:
    """The first `prefill_blocks` of the hit by the prefill node, the rest by the decode node.

    The prefill node takes the front: should a later block be missing, it holds the prefix to recompute from;
    the front is also what concurrent requests share, and the back what decode nodes wrote last and may still
    hold.
    """
    hit, prefill, decode = choice.hit, choice.prefill.node, choice.decode.node
    cut = hit.stop if prefill == decode else hit.start + prefill_blocks
    parts = ((BlockRange(hit.start, cut), prefill), (BlockRange(cut, hit.stop), decode))
    return ReadPlan(tuple(ReadSegment(blocks, reader) for blocks, reader in parts if len(blocks)))
