"""An ideal prefix cache over planned histories: how many leading tokens of a prompt some earlier history
holds.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from dualpath.core.keys import KEY_BYTES, child_key, pack_tokens
from dualpath.workload.content import Piece, materialize, shared_tokens, suffix

_ROOT = bytes(KEY_BYTES)


class Chain(NamedTuple):
    """A token sequence and the chained keys of its full blocks."""

    pieces: tuple[Piece, ...] = ()
    keys: tuple[bytes, ...] = ()


class Hit(NamedTuple):
    """How much of a sequence was already there."""

    blocks: int
    tokens: int


class PrefixIndex:
    """All histories so far.

    Work and memory are in proportion to what is new in a history, not to its length.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._seen: set[bytes] = set()
        # What followed a block, by its key and the next token: for matches inside a block that differs
        self._followers: dict[tuple[bytes, bytes], set[bytes]] = defaultdict(set)

    def visit(self, pieces: tuple[Piece, ...], near: Chain) -> tuple[Chain, Hit]:
        """Add a sequence; returns its chain and what was there before.

        `near` (visited) saves work where it agrees.
        """
        same = shared_tokens(near.pieces, pieces) // self._block_tokens
        keys = list(near.keys[:same])
        packed = pack_tokens(materialize(suffix(pieces, same * self._block_tokens)))  # type: ignore[arg-type]
        size = 4 * self._block_tokens
        blocks = [packed[at : at + size] for at in range(0, len(packed), size)]
        hit = Hit(same, same * self._block_tokens)
        hitting = True
        for block in blocks:
            parent = keys[-1] if keys else _ROOT
            key = child_key(parent, block) if len(block) == size else None
            if hitting and key in self._seen:
                hit = Hit(hit.blocks + 1, hit.tokens + self._block_tokens)
            elif hitting:
                hitting = False
                hit = Hit(hit.blocks, hit.tokens + self._begun(parent, block))
            if key is None or key not in self._seen:
                self._followers[parent, block[:4]].add(block)
            if key is not None:
                self._seen.add(key)
                keys.append(key)
        return Chain(pieces, tuple(keys)), hit

    def _begun(self, parent: bytes, block: bytes) -> int:
        """The longest beginning of a block, in tokens, that followed its parent before."""
        return max(
            (_common_tokens(block, other) for other in self._followers.get((parent, block[:4]), ())),
            default=0,
        )


def _common_tokens(left: bytes, right: bytes) -> int:
    a, b = (np.frombuffer(packed, "<u4") for packed in (left, right))
    differs = a[: len(b)] != b[: len(a)]
    return int(differs.argmax()) if differs.any() else len(differs)
