"""A rate measured while there was work: what storage reads, what an engine processes."""

from dualpath.core.units import NS_PER_S

_LEAST_BUSY_NS = 100_000_000
_WEIGHT = 0.3


class RateMeter:
    """An average that follows changes within seconds; `per_s` starts as a first guess, or 0 without one."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._count = 0
        self._busy_ns = 0

    def update(self, count: int, busy_ns: int) -> None:
        """Totals since the start; short busy times say little and wait for the next update."""
        busy, moved = busy_ns - self._busy_ns, count - self._count
        if busy > _LEAST_BUSY_NS and moved:
            weight = _WEIGHT if self.per_s else 1.0
            self.per_s += weight * (moved * NS_PER_S / busy - self.per_s)
            self._count, self._busy_ns = count, busy_ns
