"""The longest stored prefix in a few probes."""

from collections.abc import Awaitable, Callable, Sequence

from dualpath.core.keys import BlockKey


async def longest_prefix(keys: Sequence[BlockKey], contains: Callable[[BlockKey], Awaitable[bool]]) -> int:
    """How many of these chained keys are stored from the first on, by about log2(len(keys)) probes.

    A binary search that assumes closed prefixes: a parent becomes durable before its children and leaves
    after them. Where power loss broke that, the answer may be too long; the read of the absent block then
    says BlockMissing, which costs a recompute.
    """
    stored, absent = 0, len(keys) + 1  # prefixes of `stored` blocks are there, of `absent` blocks are not
    while absent - stored > 1:
        middle = (stored + absent) // 2
        if await contains(keys[middle - 1]):
            stored = middle
        else:
            absent = middle
    return stored
