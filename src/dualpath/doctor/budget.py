"""Time for measurements, and how they show that they go on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dualpath.core.errors import DualPathError

Progress = Callable[[str, float], None]
"""Told what is being measured and the share of all work (0..1) that it completes."""


class Stopwatch:
    """Seconds since it was made, or since `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin again at zero."""
        self._start_ns = time.perf_counter_ns()

    @property
    def seconds(self) -> float:
        """Time so far; never zero."""
        return max(1, time.perf_counter_ns() - self._start_ns) / 1e9


def best_rate(work: Callable[[], int], seconds: float) -> float:
    """Units a second of the fastest of at least two calls within `seconds`; `work` says how many units it did."""
    whole, best, calls = Stopwatch(), 0.0, 0
    while calls < 2 or whole.seconds < seconds:
        watch = Stopwatch()
        best = max(best, work() / watch.seconds)
        calls += 1
    return best


@contextmanager
def as_one_error() -> Iterator[None]:
    """Concurrent copies fail together: raise the first of their errors, instead of the group."""
    try:
        yield
    except* DualPathError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
