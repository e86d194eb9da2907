"""What happened (events, past tense) and what is to be done (commands, imperative).

Block ranges, slots and token counts only: keys, tokens and bytes are the driver's.
"""

import msgspec

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import ReadPlan
from dualpath.core.report import Role
from dualpath.core.request import FinishReason
from dualpath.core.runs import Runs
from dualpath.policy.retain import Kept


class Event(msgspec.Struct, frozen=True):
    """Base of all events."""


class NodeJoined(Event, frozen=True):
    """A node with an arena of `slots`."""

    node: NodeId
    role: Role
    slots: int
    write_slots: int
    read_tokens_per_s: float


class NodeReported(Event, frozen=True):
    """Sign of life. `read_queue_tokens` is None unless the node had seen all that was assigned to it."""

    node: NodeId
    read_tokens_per_s: float
    read_queue_tokens: int | None


class EngineReported(Event, frozen=True):
    """The rates at which a prefill engine gets through prompts, cached tokens included (what tok_e counts), and
    at which it computes new tokens; 0 for one that is not known yet."""

    engine: EngineId
    process_tokens_per_s: float
    compute_tokens_per_s: float = 0.0


class NodeLost(Event, frozen=True):
    """The node's agent is gone, and with it arena and engines."""

    node: NodeId


class EngineJoined(Event, frozen=True):
    """An engine of a known node can take work."""

    engine: EngineId
    kv_tokens: int
    process_tokens_per_s: float
    compute_tokens_per_s: float = 0.0


class EngineLost(Event, frozen=True):
    """The engine is gone; its node is not."""

    engine: EngineId


class RequestArrived(Event, frozen=True):
    """A client asks."""

    request: RequestId
    prompt_tokens: int
    max_tokens: int


class RequestCancelled(Event, frozen=True):
    """The client is gone."""

    request: RequestId


class ReadsAdvanced(Event, frozen=True):
    """`blocks` more of the grant's planned reads on this node are done."""

    grant: int
    node: NodeId
    blocks: int


class ReadsFinished(Event, frozen=True):
    """Everything that this node brings in by itself for the grant is readable."""

    grant: int
    node: NodeId


class CopyFinished(Event, frozen=True):
    """The decode node has the blocks that the prefill node read."""

    grant: int


class FetchFinished(Event, frozen=True):
    """The decode node has the blocks that the relay read."""

    grant: int


class PrefillStarted(Event, frozen=True):
    """The first chunk is being computed."""

    grant: int


class PrefillFinished(Event, frozen=True):
    """The whole prompt's KV of new tokens is on the decode node; `reason` is set if the first token was the last."""

    grant: int
    reason: FinishReason | None


class DecodeStarted(Event, frozen=True):
    """The request is in the decode batch."""

    grant: int


class DecodeFinished(Event, frozen=True):
    """The last token is out."""

    grant: int
    reason: FinishReason
    completion_tokens: int


class StepFailed(Event, frozen=True):
    """The attempt cannot go on, for `cause` ("corrupt", "missing", "transfer", "store", ...)."""

    grant: int
    cause: str


class BlockHeld(Event, frozen=True):
    """The grant's slot on its decode node also waits for a write-back."""

    grant: int
    slot: int


class BlockWritten(Event, frozen=True):
    """That write-back ended, one way or the other."""

    node: NodeId
    slot: int


class Released(Event, frozen=True):
    """The node no longer touches the grant's slots, its own or its peer's."""

    grant: int
    node: NodeId


class Command(msgspec.Struct, frozen=True):
    """Base of all commands."""


class RetainedBlock(msgspec.Struct, frozen=True):
    """A hit block that lies in an arena: `slot` of `node`, handed out under `grant`."""

    block: int
    node: NodeId
    slot: int
    grant: int


class Relay(msgspec.Struct, frozen=True):
    """A third node that reads some of the hit: the decode node fetches `blocks` from its `slots`, in order."""

    node: NodeId
    blocks: Runs
    slots: Runs


class Assign(Command, frozen=True):
    """Start an attempt: both nodes, and the relay, open the grant and begin to read as the plan says."""

    grant: int
    request: RequestId
    prefill: EngineId
    decode: EngineId
    hit_blocks: int
    plan: ReadPlan  # the blocks to read from storage
    retained: tuple[RetainedBlock, ...]  # the rest of the hit
    prefill_blocks: Runs  # the blocks that lie in prefill_slots, in order
    prefill_slots: Runs
    decode_slots: Runs  # one per block of the request, tokens to come included
    kept: Kept | None = None  # the first blocks lie in a node's spare DRAM, from where the decode node takes them
    relay: Relay | None = None  # a node besides the pair that reads, too


class StartPull(Command, frozen=True):
    """The decode node copies what the prefill node read."""

    grant: int
    node: NodeId


class StartFetch(Command, frozen=True):
    """The decode node copies what the relay read."""

    grant: int
    node: NodeId


class StartPrefill(Command, frozen=True):
    """The hit is readable: queue the request at its prefill engine."""

    grant: int
    engine: EngineId


class StartDecode(Command, frozen=True):
    """The prompt's KV is complete on the decode node: queue the request at its decode engine."""

    grant: int
    engine: EngineId


class Release(Command, frozen=True):
    """The node stops what it does for the grant and answers Released."""

    grant: int
    node: NodeId


class FinishRequest(Command, frozen=True):
    """The client has all tokens; tell it why they ended."""

    grant: int
    request: RequestId
    reason: FinishReason
    completion_tokens: int


class FailRequest(Command, frozen=True):
    """The request ends without an answer. `by_request`: it could never be served."""

    request: RequestId
    message: str
    by_request: bool
