"""Links, and the flows on them."""

import enum
from collections.abc import Callable
from math import inf
from typing import Any

LOW_SHARE = 0.01  # of a link, kept for the low lane while both lanes want it (paper section 4: "about 99%")
NEVER = 2**63
SLACK = 1e-9  # relative: what sums of rates may be off by
_ENOUGH = 1 + SLACK


class Lane(enum.IntEnum):
    """Classes of traffic on a link."""

    LOW = 0
    HIGH = 1


class Link:
    """One direction of a NIC, a bus or a memory. An infinitely fast one costs nothing, messages included.

    `bytes_moved` and `busy_ns` (any flow) are as of the last end of a flow on it.
    """

    __slots__ = (
        "binds",
        "busy_ns",
        "busy_since_ns",
        "bytes_moved",
        "demand",
        "load",
        "message_bytes",
        "message_ns",
        "name",
        "rate",
        "room",
        "share",
        "tight",
        "users",
        "weight",
    )

    def __init__(self, name: str, bytes_per_s: float, message_ns: float = 0) -> None:
        if not (bytes_per_s >= 0 and 0 <= message_ns < inf):
            raise ValueError(f"link {name}: {bytes_per_s} bytes/s and {message_ns} ns a message; give 0 or more")
        self.name = name
        self.message_ns = message_ns
        self.bytes_moved = 0.0
        self.busy_ns = 0
        self.busy_since_ns = 0
        self.users: tuple[dict[Flow, None], dict[Flow, None]] = ({}, {})  # of each lane
        self.load = 0.0  # sum of rate * weight over its users
        self.demand = 0.0  # the same at the rates that they would have alone
        self.tight = False  # their demand is more than it has: only then can it bind anybody
        self.binds = 0  # users that would go faster but for the others here
        self.room = 0.0  # while rates are settled: what nobody has got yet,
        self.weight = 0.0  # the weights of those who wait for some of it,
        self.share = -1.0  # and what each of them got in the end
        self.put(bytes_per_s)

    @property
    def bytes_per_s(self) -> float:
        """Its rate now."""
        return self.rate * 1e9

    def put(self, bytes_per_s: float) -> None:
        """Its rate from now on, while it has no flows; with flows: Network.set_rate."""
        self.rate = bytes_per_s / 1e9  # bytes/ns
        self.message_bytes = self.message_ns * self.rate if self.rate < inf else 0.0  # what a message displaces

    def limit(self) -> float:
        """Load up to which it binds nobody; with both lanes on it cautiously low."""
        low, high = self.users
        return self.rate * (1 - LOW_SHARE) if low and high else self.rate * _ENOUGH


class Flow:
    """`size` bytes on their way over `links`, at no more than `pace` bytes/ns.

    What moves is its work: its bytes and those that its messages displace, on the link where that is most. A link's
    weight in `uses` is the part of the work that it carries: 1 or less (twice that for a link named twice).
    """

    __slots__ = (
        "args",
        "bound",
        "cap",
        "done",
        "due_ns",
        "event_ns",
        "lane",
        "left",
        "links",
        "messages",
        "next_bound",
        "next_rate",
        "on",
        "pace",
        "rate",
        "since_ns",
        "size",
        "tight",
        "uses",
        "work",
    )

    def __init__(
        self, links: tuple[Link, ...], size: float, messages: int, pace: float, lane: Lane, done: Callable[..., Any],
        args: Any,
    ) -> None:  # fmt: skip
        self.links = links
        self.size = size
        self.messages = messages
        self.pace = pace
        self.lane = lane
        self.done = done
        self.args = args
        self.rate = 0.0  # work/ns; 0 until the instant that it started in ends
        self.cap = inf  # its rate if it were alone
        self.bound: Link | None = None  # the link where others keep it from going faster; None: it has its cap
        self.next_rate = inf  # while rates are settled: negative until known; inf: stays as it is
        self.next_bound: Link | None = None
        self.tight: list[tuple[Link, float]] = []  # those of its uses that matter then
        self.work = self.left = 0.0
        self.since_ns = 0  # `left` is as of then
        self.due_ns = NEVER  # when it ends at this rate
        self.event_ns = NEVER  # when the kernel asks for it next
        self.on = False  # it has begun and not ended
        self.uses: dict[Link, float] = {}  # finite links that it is on now

    def left_at(self, now_ns: int) -> float:
        """Work not done yet."""
        return self.left - self.rate * (now_ns - self.since_ns)

    def weigh(self) -> float:
        """Find its work and its weights, by its links' rates of now; returns its rate if it were alone."""
        size, messages, links, uses = self.size, self.messages, self.links, self.uses
        self.work = work = size + messages * max([link.message_bytes for link in links], default=0.0)
        rate = inf
        if not work:
            return rate
        for link in links:
            if link.rate < inf:
                uses[link] = uses.get(link, 0.0) + (size + messages * link.message_bytes) / work
        for link, weight in uses.items():
            if link.rate < rate * weight:
                rate = link.rate / weight
        bytes_part = size / work
        return self.pace / bytes_part if self.pace < rate * bytes_part else rate
