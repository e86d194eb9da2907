"""A request and its attempts: what the machine remembers of them.

    WAITING --assign--> LOADING --all reads finished--> PREFILLING --first token--> HANDOFF --copy there--> DECODING
       ^                   |                                |                          |                       |
       |                   |                                +-- first token is last ---+----- last token ------+--> end
       +--- step failed, engine or node lost, deadline (a new attempt under a new grant) <---------------------+

An attempt outlives its end until both nodes have released it: only then are its slots free.
"""

import enum
from dataclasses import dataclass, field

from dualpath.core.ids import NodeId, RequestId
from dualpath.core.plan import ReadPlan
from dualpath.protocol.events import RetainedBlock
from dualpath.protocol.membership import Engine, Node


class Phase(enum.Enum):
    """Where an attempt is; ENDED attempts only wait for their release."""

    LOADING = "loading"
    PREFILLING = "prefilling"
    HANDOFF = "handoff"
    DECODING = "decoding"
    ENDED = "ended"


@dataclass(slots=True)
class Waiting:
    """A request that has no running attempt."""

    request: RequestId
    sequence: int  # order of arrival; kept over attempts
    prompt_tokens: int
    max_tokens: int
    since_ns: int
    group: NodeId | None = None  # the decode group whose private queue it is in
    attempts: int = 0
    overtaken: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and all tokens to come."""
        return self.prompt_tokens + self.max_tokens


@dataclass(slots=True)
class Attempt:
    """One try to serve a request, under one grant."""

    grant: int
    waiting: Waiting  # the request, to be queued again if this fails
    prefill_node: Node
    prefill: Engine
    decode_node: Node
    decode: Engine
    plan: ReadPlan
    retained: tuple[RetainedBlock, ...]
    prefill_slots: list[int]
    decode_slots: list[int]
    deadline_ns: int
    phase: Phase = Phase.LOADING
    copied: bool = False  # the decode node has what the prefill node read
    loading: set[NodeId] = field(default_factory=set)  # nodes that still bring in blocks
    reads_left: dict[NodeId, int] = field(default_factory=dict)  # planned blocks not yet read
    unreleased: set[NodeId] = field(default_factory=set)
    releasing: set[NodeId] = field(default_factory=set)
    prefill_counted: bool = True
    decode_counted: bool = True

    def uncount_prefill(self) -> None:
        """Take the request off the prefill engine's load, once."""
        if self.prefill_counted:
            self.prefill_counted = False
            self.prefill.requests -= 1
            self.prefill.tokens -= self.waiting.prompt_tokens

    def uncount_decode(self) -> None:
        """Take the request off the decode engine's load, once."""
        if self.decode_counted:
            self.decode_counted = False
            self.decode.requests -= 1
            self.decode.tokens -= self.waiting.total_tokens

    def uncount_reads(self, node: Node, blocks: int, block_tokens: int) -> None:
        """So many planned blocks fewer in the node's read queue."""
        done = min(blocks, self.reads_left.get(node.node, 0))
        if done:
            self.reads_left[node.node] -= done
            node.read_queue_tokens = max(0, node.read_queue_tokens - done * block_tokens)
