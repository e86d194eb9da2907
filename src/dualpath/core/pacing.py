"""A link of a given rate as arithmetic: how one machine plays several NICs. Pure; callers own clock and sleep."""

from dualpath.core.units import NS_PER_S


class LinkClock:
    """One direction of one NIC. Transfers occupy it one after the other, without burst credit for idle time."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at_ns = 0

    def reserve(self, count: int, now_ns: int) -> int:
        """Take the link for `count` bytes; returns when the last of them has passed (`now_ns` without a limit)."""
        if self._bytes_per_s is None:
            return now_ns
        self._free_at_ns = max(self._free_at_ns, now_ns) + count * NS_PER_S // self._bytes_per_s
        return self._free_at_ns
