"""What the scheduler's driver keeps of a request beside the machine's state: content, client, and times."""

from dataclasses import dataclass, field

from dualpath.core.keys import BlockKey
from dualpath.core.request import Submission, Timeline
from dualpath.protocol.events import Assign


@dataclass
class LiveRequest:
    """A request from its arrival to its last word."""

    submission: Submission
    reply_to: str  # where engines send tokens
    gateway: bytes  # ZeroMQ identity of the gateway that waits for the end
    arrived_ns: int
    timeline: Timeline = field(default_factory=Timeline)
    assign: Assign | None = None  # the attempt that runs
    first_token: int = -1

    def since_arrival(self, now_ns: int) -> int:
        """Nanoseconds since the arrival, the unit of the timeline."""
        return now_ns - self.arrived_ns

    def begin(self, assign: Assign, now_ns: int) -> None:
        """A new attempt: its times replace those of the last one."""
        old = self.timeline
        self.assign = assign
        self.timeline = Timeline(
            dispatched_ns=self.since_arrival(now_ns),
            prefill_engine=assign.prefill,
            decode_engine=assign.decode,
            attempts=old.attempts + 1,
            recompute_causes=old.recompute_causes,
        )

    def parent_of(self, block: int) -> BlockKey:
        """Key of the block before this one, or the root."""
        return self.submission.keys[block - 1] if block else self.submission.root
