"""The prefix index: which blocks are cached and where. A hint, rebuilt from the store at start.

A wrong hint costs a recompute, never a wrong token: readers verify what they read.

Stored prefixes are mostly closed: a block is there if its successor is. But blocks become durable one by one, a listing
of the store names them in no order, and single ones are found to be missing. So the index believes it of a block only
once a look-up has walked there; the next one finds the end of what was walked by binary search.
"""

from collections.abc import Iterable, Sequence

import msgspec

from dualpath.core.ids import NodeId
from dualpath.core.keys import BlockKey
from dualpath.protocol.events import RetainedBlock
from dualpath.protocol.machine import Hit
from dualpath.scheduler.keyset import KeySet

_MOST_FORGOTTEN = 100_000


class Held(msgspec.Struct, frozen=True):
    """A block that no storage has yet: its slot waits for its write-back."""

    node: NodeId
    slot: int
    grant: int


class PrefixIndex:
    """Durable keys, and held ones with their slots."""

    def __init__(self) -> None:
        self._durable = KeySet()
        self._forgotten: set[BlockKey] = set()  # not there, though keys behind them may be marked
        self._held: dict[BlockKey, Held] = {}

    def __len__(self) -> int:
        return len(self._durable) + len(self._held)

    @property
    def pending(self) -> int:
        """Blocks that are not durable yet."""
        return len(self._held)

    def add_durable(self, keys: Iterable[BlockKey]) -> None:
        """These lie on storage."""
        for key in keys:
            self._durable.add(key)
            self._forgotten.discard(key)

    def hold(self, key: BlockKey, held: Held) -> None:
        """The block is complete in a slot; the first holder stays the one that is named."""
        if key not in self._durable:
            self._held.setdefault(key, held)

    def written(self, key: BlockKey, node: NodeId, slot: int, *, durable: bool) -> None:
        """A write-back ended."""
        held = self._held.get(key)
        if held and (durable or (held.node == node and held.slot == slot)):
            del self._held[key]
        if durable:
            self.add_durable([key])

    def forget(self, keys: Iterable[BlockKey]) -> None:
        """The store does not hold these, or holds them corrupt."""
        if len(self._forgotten) > _MOST_FORGOTTEN:
            self._forgotten.clear()  # hints may be wrong
        self._forgotten.update(key for key in keys if self._durable.discard(key))

    def lose_node(self, node: NodeId) -> None:
        """What only this node's arena held is gone."""
        self._held = {key: held for key, held in self._held.items() if held.node != node}

    def knows(self, key: BlockKey) -> bool:
        """Whether the block is durable or held somewhere."""
        return key in self._durable or key in self._held

    def look_up(self, keys: Sequence[BlockKey]) -> Hit:
        """The longest prefix of the chained keys that is durable or held."""
        retained: list[RetainedBlock] = []
        durable = self._durable
        for block in range(self._closed_blocks(keys), len(keys)):
            key = keys[block]
            if key in durable:
                if not retained:
                    durable.close(key)
                continue
            held = self._held.get(key)
            if held is None:
                return Hit(block, tuple(retained))
            retained.append(RetainedBlock(block, held.node, held.slot, held.grant))
        return Hit(len(keys), tuple(retained))

    def _closed_blocks(self, keys: Sequence[BlockKey]) -> int:
        """How many of the first keys are durable for sure; those behind them may be, too."""
        closed = self._durable.closed_prefix(keys)
        if self._forgotten and not self._forgotten.isdisjoint(keys[:closed]):
            return next(block for block, key in enumerate(keys) if key in self._forgotten)
        return closed

    def nbytes(self) -> int:
        """Memory of the durable keys."""
        return self._durable.nbytes()
