"""Virtual time: a heap of actions, named random streams, and a hash of what happened.

The same seed gives the same run, whatever PYTHONHASHSEED: order is decided by (time, priority, sequence) alone.
"""

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Any

Action = Callable[..., None]
BACKGROUND = 9  # priority of actions that only watch: they do not keep a run going


class Kernel:
    """The clock, in integer nanoseconds from 0, and what is to happen when."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_ns = 0
        self.actions_done = 0
        self._heap: list[tuple[int, int, int, Action, tuple[Any, ...]]] = []
        self._sequence = 0
        self._foreground = 0  # actions in the heap that are not in the background
        self._hash = hashlib.sha256()

    def at(self, time_ns: int, action: Action, *args: Any, priority: int = 0) -> None:
        """Call action(*args) at `time_ns`; of the same time: lower priority first, then in order of asking.

        ValueError for a time that has passed: a model that needs it is wrong.
        """
        if time_ns < self.now_ns:
            raise ValueError(f"an action for {time_ns} ns, which is before now, {self.now_ns} ns")
        self._sequence += 1
        self._foreground += priority != BACKGROUND
        heapq.heappush(self._heap, (time_ns, priority, self._sequence, action, args))

    def after(self, delay_ns: int, action: Action, *args: Any, priority: int = 0) -> None:
        """Call action(*args) `delay_ns` from now."""
        self.at(self.now_ns + delay_ns, action, *args, priority=priority)

    def run(self, until_ns: int | None = None) -> None:
        """Do all actions until only background ones are left, or those up to and including `until_ns`, where the clock
        then stands.
        """
        heap = self._heap
        while self._foreground and (until_ns is None or heap[0][0] <= until_ns):
            self.now_ns, priority, _, action, args = heapq.heappop(heap)
            self._foreground -= priority != BACKGROUND
            self.actions_done += 1
            action(*args)
        if until_ns is not None:
            self.now_ns = max(self.now_ns, until_ns)

    def stream(self, name: str) -> random.Random:
        """A random stream of its own: what others draw does not change it."""
        return random.Random(hashlib.sha256(f"{self.seed}/{name}".encode()).digest())

    def note(self, *facts: object) -> None:
        """Add to the trace: numbers and strings, with the time."""
        self._hash.update(repr((self.now_ns, *facts)).encode())

    @property
    def trace_hash(self) -> str:
        """Of all that was noted: equal for equal runs."""
        return self._hash.hexdigest()
