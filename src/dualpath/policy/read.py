"""Who reads a request's hit from storage: prefill node, decode node or both (paper section 5), or a third one, too."""

from collections.abc import Callable

from msgspec.structs import replace

from dualpath.core.ids import NodeId
from dualpath.core.plan import BlockRange, ReadPlan, ReadSegment
from dualpath.policy.loads import NodeLoad, ReadChoice
from dualpath.policy.recompute import blocks_worth_reading
from dualpath.policy.shares import even_shares

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

    Equal plans: the one with fewer segments, then the one with more blocks for the prefill node. Rates count as equal
    while either is unknown.
    """
    shares, _ = even_shares(_pair(choice), len(choice.hit), choice.block_tokens)
    return _plan(choice, shares[0])


def load_or_recompute(choice: ReadChoice) -> ReadPlan:
    """As `split`, but the plan may end before the hit does: what it leaves out is computed sooner than read."""
    blocks = blocks_worth_reading(choice, _pair(choice))
    start = choice.hit.start
    return split(replace(choice, hit=BlockRange(start, start + blocks)))


def any_node(choice: ReadChoice) -> ReadPlan:
    """As `split`, and the spare node reads too if all ends sooner with it (the paper's future work)."""
    pair = _pair(choice)
    if choice.spare is None:
        return split(choice)
    shares, _ = even_shares([*pair, choice.spare], len(choice.hit), choice.block_tokens)
    *others, last = shares
    readers = [pair[0].node, choice.spare.node, *(n.node for n in pair[1:])]
    return _segments(choice.hit, list(zip(readers, [others[0], last, *others[1:]], strict=True)))


READ_POLICIES: dict[str, ReadPolicy] = {
    "prefill-only": prefill_only,
    "round-robin": round_robin,
    "shorter-queue": shorter_queue,
    "split": split,
    "load-or-recompute": load_or_recompute,
    "any-node": any_node,
}
SPARE_POLICIES = frozenset(["any-node"])
"""Those that look at `ReadChoice.spare`; for the others nobody needs to look for one."""


def _pair(choice: ReadChoice) -> list[NodeLoad]:
    """The request's nodes; one, if it plays both roles."""
    return [choice.prefill] if choice.prefill.node == choice.decode.node else [choice.prefill, choice.decode]


def _plan(choice: ReadChoice, prefill_blocks: int) -> ReadPlan:
    """The first `prefill_blocks` of the hit by the prefill node, the rest by the decode node.

    The prefill node takes the front: should a later block be missing, it holds the prefix to recompute from;
    the front is also what concurrent requests share, and the back what decode nodes wrote last and may still
    hold.
    """
    prefill, decode = choice.prefill.node, choice.decode.node
    blocks = len(choice.hit)
    if prefill == decode:
        prefill_blocks = blocks
    return _segments(choice.hit, [(prefill, prefill_blocks), (decode, blocks - prefill_blocks)])


def _segments(hit: BlockRange, shares: list[tuple[NodeId, int]]) -> ReadPlan:
    """The hit cut into runs, in the order of `shares`."""
    segments, start = [], hit.start
    for reader, blocks in shares:
        if blocks:
            segments.append(ReadSegment(BlockRange(start, start + blocks), reader))
            start += blocks
    return ReadPlan(tuple(segments))
