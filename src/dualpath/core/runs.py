"""Long sequences of mostly consecutive numbers, kept as runs: the slots of a grant, the blocks of a plan."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import overload

Run = tuple[int, int]  # start, length (at least 1)


class Runs(Sequence[int]):
    """Immutable; equal to any sequence of the same numbers. Making one and its length cost O(runs), not O(numbers)."""

    __slots__ = ("_length", "runs")

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self.runs: tuple[Run, ...] = tuple(runs)
        self._length = sum([length for _, length in self.runs])

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable([range(start, start + length) for start, length in self.runs])

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and any(start <= number < start + length for start, length in self.runs)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...

    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError(f"number {index} of {self._length}")
        ends = list(accumulate([length for _, length in self.runs]))
        at = bisect_right(ends, index)
        start, length = self.runs[at]
        return start + length - (ends[at] - index)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Runs) and self.runs == other.runs:
            return True
        return isinstance(other, Sequence) and len(self) == len(other) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Runs({', '.join(f'{start}..{start + length - 1}' for start, length in self.runs)})"
