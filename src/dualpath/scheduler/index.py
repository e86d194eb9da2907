"""The prefix index: which blocks are cached and where. A hint, rebuilt from the store at start.

A wrong hint costs a recompute, never a wrong token: readers verify what they read.
"""

from collections.abc import Iterable, Sequence

import msgspec

from dualpath.core.ids import NodeId
from dualpath.core.keys import BlockKey
from dualpath.protocol.events import RetainedBlock
from dualpath.protocol.machine import Hit


class Held(msgspec.Struct, frozen=True):
    """A block that no storage has yet: its slot waits for its write-back."""

    node: NodeId
    slot: int
    grant: int


class PrefixIndex:
    """Durable keys, and held ones with their slots."""

    def __init__(self) -> None:
        self._durable: set[BlockKey] = set()
        self._held: dict[BlockKey, Held] = {}

    def __len__(self) -> int:
        return len(self._durable) + len(self._held)

    @property
    def pending(self) -> int:
        """Blocks that are not durable yet."""
        return len(self._held)

    def add_durable(self, keys: Iterable[BlockKey]) -> None:
        """These lie on storage."""
        self._durable.update(keys)

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
            self._durable.add(key)

    def forget(self, keys: Iterable[BlockKey]) -> None:
        """The store does not hold these, or holds them corrupt."""
        self._durable.difference_update(keys)

    def lose_node(self, node: NodeId) -> None:
        """What only this node's arena held is gone."""
        self._held = {key: held for key, held in self._held.items() if held.node != node}

    def knows(self, key: BlockKey) -> bool:
        """Whether the block is durable or held somewhere."""
        return key in self._durable or key in self._held

    def look_up(self, keys: Sequence[BlockKey]) -> Hit:
        """The longest prefix of the chained keys that is durable or held."""
        retained: list[RetainedBlock] = []
        for block, key in enumerate(keys):
            if key in self._durable:
                continue
            held = self._held.get(key)
            if held is None:
                return Hit(block, tuple(retained))
            retained.append(RetainedBlock(block, held.node, held.slot, held.grant))
        return Hit(len(keys), tuple(retained))
