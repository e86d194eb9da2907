"""A request and its attempts: what the machine remembers of them, and what an attempt occupies.

    WAITING --assign--> LOADING --all reads there-----> PREFILLING --first token--> HANDOFF --copy there--> DECODING
       ^                   |                                |                          |                       |
       |                   |                                +-- first token is last ---+----- last token ------+--> end
       +--- step failed, engine or node lost, deadline (a new attempt under a new grant) <---------------------+

An attempt outlives its end until all its nodes have released it: only then are its slots free. Those are the pair and,
if the plan names one, a third node that only reads (the relay); it is out when the decode node has what it read.
"""

import enum
from dataclasses import dataclass, field

from dualpath.core.ids import NodeId
from dualpath.core.plan import ReadPlan
from dualpath.core.runs import Runs
from dualpath.policy.retain import Kept
from dualpath.protocol.events import Assign, Relay, RetainedBlock
from dualpath.protocol.membership import Engine, Node
from dualpath.protocol.waiting import Waiting

_NO_SLOTS = Runs()


class Phase(enum.Enum):
    """Where an attempt is; ENDED attempts only wait for their release."""

    LOADING = "loading"
    PREFILLING = "prefilling"
    HANDOFF = "handoff"
    DECODING = "decoding"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Attempt:
    """One try to serve a request, under one grant. Made with its slots taken; occupy() counts the rest."""

    grant: int
    waiting: Waiting  # the request, to be queued again if this fails
    prefill_node: Node
    prefill: Engine
    decode_node: Node
    decode: Engine
    hit_blocks: int
    plan: ReadPlan
    retained: tuple[RetainedBlock, ...]
    prefill_blocks: Runs
    prefill_slots: Runs  # empty once they are given back
    decode_slots: Runs
    kept: Kept | None = None
    relay_node: Node | None = None  # a third node that reads
    relay_blocks: Runs = _NO_SLOTS
    relay_slots: Runs = _NO_SLOTS
    deadline_ns: int = 0
    phase: Phase = Phase.LOADING
    copied: bool = False  # the decode node has what the prefill node read
    fetched: bool = False  # and what the relay read
    pushing: bool = False  # the prefill node may be writing to the decode node's slots
    loading: set[NodeId] = field(default_factory=set)  # nodes that still bring in blocks
    reads_left: dict[NodeId, int] = field(default_factory=dict)  # planned blocks not yet read
    unreleased: set[NodeId] = field(default_factory=set)
    releasing: set[NodeId] = field(default_factory=set)
    sources: list[tuple[Node, int]] = field(default_factory=list)  # slots of retained blocks, held while they are read
    prefill_counted: bool = True
    decode_counted: bool = True

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The pair, and the relay if there is one."""
        if self.relay_node:
            return self.prefill_node, self.decode_node, self.relay_node
        return self.prefill_node, self.decode_node

    def assignment(self) -> Assign:
        """The command that starts it."""
        relay = Relay(self.relay_node.node, self.relay_blocks, self.relay_slots) if self.relay_node else None
        return Assign(
            self.grant, self.waiting.request, self.prefill.engine, self.decode.engine, self.hit_blocks, self.plan,
            self.retained, self.prefill_blocks, self.prefill_slots, self.decode_slots, self.kept, relay,
        )  # fmt: skip

    # loads -------------------------------------------------------------------------------------------------------

    def occupy(self, sources: list[Node], block_tokens: int) -> None:
        """Count the engines' loads and planned reads, and hold what `retained` names on `sources`, in order."""
        self.prefill_node.count(self.prefill, 1, self.waiting.prompt_tokens)
        self.decode_node.count(self.decode, 1, self.waiting.total_tokens)
        for node in self.nodes:
            self.unreleased.add(node.node)
            blocks = self.reads_left[node.node] = self.plan.blocks_by(node.node)
            if blocks:
                node.queue_reads(node.read_queue_tokens + blocks * block_tokens)
                self.loading.add(node.node)
        # also with nothing to read: its answer says that the grant is open there, so that pushes find their slots
        self.loading.add(self.decode_node.node)
        self.copied = not self.prefill_blocks
        self.fetched = not self.relay_node
        for node, block in zip(sources, self.retained, strict=True):
            node.ledger.hold(block.slot)
            self.sources.append((node, block.slot))

    def uncount_prefill(self) -> None:
        """Take the request off the prefill engine's load, once."""
        if self.prefill_counted:
            self.prefill_counted = False
            self.prefill_node.count(self.prefill, -1, -self.waiting.prompt_tokens)

    def uncount_decode(self) -> None:
        """Take the request off the decode engine's load, once."""
        if self.decode_counted:
            self.decode_counted = False
            self.decode_node.count(self.decode, -1, -self.waiting.total_tokens)

    def uncount_reads(self, node: Node, blocks: int, block_tokens: int) -> None:
        """So many planned blocks fewer in the node's read queue."""
        done = min(blocks, self.reads_left.get(node.node, 0))
        if done:
            self.reads_left[node.node] -= done
            node.queue_reads(max(0, node.read_queue_tokens - done * block_tokens))

    # slots -------------------------------------------------------------------------------------------------------

    def needs(self, node: Node) -> bool:
        """Whether the attempt cannot go on without the node.

        A decode needs its prefill node no more; nobody needs the relay once the decode node has what it read.
        """
        if node is self.prefill_node:
            return self.phase is not Phase.DECODING
        if node is self.relay_node and not self.fetched:
            return True
        return node is self.decode_node or any(source is node for source, _ in self.sources)

    def pushing_from(self, node: Node) -> bool:
        """Whether this node may still write into the other one's slots, as far as anybody knows."""
        return self.pushing and node is self.prefill_node and node.node in self.unreleased

    def drop_sources(self) -> None:
        """The retained blocks are here, or nobody fetches them any more."""
        for node, slot in self.sources:
            node.ledger.drop(slot)  # the ledger of a lost node is history, and so is what it says of the slot
        self.sources.clear()

    def let_go(self, node: NodeId) -> None:
        """`node` is out of the attempt: free the slots that now nobody touches.

        The decode node reads from the prefill node's slots and the relay's until it has copied them or is out itself;
        the prefill node writes into the decode node's.
        """
        self.unreleased.discard(node)
        if node == self.prefill_node.node:
            self.uncount_prefill()
        elif node == self.decode_node.node:
            self.uncount_decode()
            self.drop_sources()
        prefill_out = self.prefill_node.node not in self.unreleased
        decode_out = self.decode_node.node not in self.unreleased
        if prefill_out and (self.copied or decode_out):
            self.prefill_node.ledger.release(self.prefill_slots)
            self.prefill_slots = _NO_SLOTS
        if self.relay_node and self.relay_node.node not in self.unreleased and (self.fetched or decode_out):
            self.relay_node.ledger.release(self.relay_slots)
            self.relay_slots = _NO_SLOTS
        if prefill_out and decode_out:
            self.decode_node.ledger.release(self.decode_slots)
            self.decode_slots = _NO_SLOTS
