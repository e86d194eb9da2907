"""A set of block keys in 13 bytes each: 42 million, all that 48,000 agents leave behind, in half a gigabyte.

Kept are 62 bits of every key, in 65,536 small open-addressed tables that grow one by one, so that no insertion waits
for a large one. Two keys share their bits once in 10^11 look-ups of a set of that size, and then it is a wrong hint.

Each key has one mark beside it: *closed*, set by who has seen that all keys before it in its chain are in the set. The
longest stored prefix of a chain is then a binary search instead of a walk.
"""

from array import array
from collections.abc import Iterable, Sequence

from dualpath.core.keys import BlockKey

_TABLES = 1 << 16
_FULL = 0.75
_FIRST_SIZE = 8
_EMPTY, _DELETED = 0, 2  # what is neither has the highest bit
_CLOSED = 1
_KEPT = 1 << 63


class KeySet:
    """Keys in no order."""

    def __init__(self, keys: Iterable[BlockKey] = ()) -> None:
        self._tables: list[array[int] | None] = [None] * _TABLES
        self._used = array("I", [0]) * _TABLES  # entries of each that are not empty
        self._count = 0
        for key in keys:
            self.add(key)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: BlockKey) -> bool:
        bits = int.from_bytes(key[:8], "little")
        table = self._tables[bits >> 1 & 0xFFFF]
        return table is not None and table[_find(table, bits)] != _EMPTY

    def is_closed(self, key: BlockKey) -> bool:
        """Whether the key is in, and marked."""
        bits = int.from_bytes(key[:8], "little")
        table = self._tables[bits >> 1 & 0xFFFF]
        return table is not None and bool(table[_find(table, bits)] & _CLOSED)

    def closed_prefix(self, keys: Sequence[BlockKey]) -> int:
        """How many of the first keys of a chain are in and marked, or fewer if marks have holes; a binary search."""
        tables = self._tables
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            bits = int.from_bytes(keys[middle][:8], "little")
            table = tables[bits >> 1 & 0xFFFF]
            if table is not None and table[_find(table, bits)] & _CLOSED:
                low = middle + 1
            else:
                high = middle
        return low

    def close(self, key: BlockKey) -> None:
        """Mark a key that is in: so are all before it."""
        bits = int.from_bytes(key[:8], "little")
        table = self._tables[bits >> 1 & 0xFFFF]
        assert table is not None, "the key is not in"
        at = _find(table, bits)
        assert table[at] != _EMPTY, "the key is not in"
        table[at] |= _CLOSED

    def add(self, key: BlockKey) -> None:
        """Put a key in; one that was not in is not marked."""
        bits = int.from_bytes(key[:8], "little")
        number = bits >> 1 & 0xFFFF
        table = self._tables[number]
        if table is None:
            table = self._tables[number] = array("Q", [_EMPTY]) * _FIRST_SIZE
        at = _find(table, bits)
        if table[at] != _EMPTY:
            return
        table[at] = (bits | _KEPT) & ~_CLOSED
        self._count += 1
        self._used[number] += 1
        if self._used[number] > _FULL * len(table):
            self._grow(number, table)

    def discard(self, key: BlockKey) -> bool:
        """Take a key out; whether it was in."""
        bits = int.from_bytes(key[:8], "little")
        table = self._tables[bits >> 1 & 0xFFFF]
        if table is None:
            return False
        at = _find(table, bits)
        if table[at] == _EMPTY:
            return False
        table[at] = _DELETED
        self._count -= 1
        return True

    def nbytes(self) -> int:
        """Memory of all tables."""
        tables = sum(table.buffer_info()[1] * 8 + 64 for table in self._tables if table is not None)
        return tables + 8 * _TABLES + 4 * _TABLES

    def _grow(self, number: int, table: "array[int]") -> None:
        """Room for a few more; what was deleted leaves now."""
        entries = [entry for entry in table if entry & _KEPT]
        new = array("Q", [_EMPTY]) * (len(entries) * 8 // 5 + _FIRST_SIZE)
        for entry in entries:
            new[_find(new, entry)] = entry
        self._tables[number] = new
        self._used[number] = len(entries)


def _find(table: "array[int]", bits: int) -> int:
    """Where the entry of these bits is, or would be put."""
    wanted = (bits | _KEPT) & ~_CLOSED
    size = len(table)
    at = (bits >> 17 & 0x3FFFFFFFFFFF) % size
    while (entry := table[at]) != _EMPTY and entry & ~_CLOSED != wanted:
        at += 1
        if at == size:
            at = 0
    return at
