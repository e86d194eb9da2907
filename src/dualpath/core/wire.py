"""Control messages between processes: MessagePack, tagged, versioned, size-limited. No KV bytes travel here.

Gateway <-> scheduler <-> node agent <-> engine. An agent is its node's leader: it relays its engines' messages and is
the node's only connection to the scheduler. `grant` names one attempt to serve a request; it is also the generation of
the arena slots that the attempt holds.
"""

from typing import Any

import msgspec

from dualpath.core.errors import ProtocolError
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.model import ModelSpec
from dualpath.core.report import ClusterReport, EngineStats, NodeStats, Role
from dualpath.core.request import Done, FinishReason, Ready, Sampling, Submission, Tokens

PROTOCOL_VERSION = 4
MAX_MESSAGE_BYTES = 64 << 20


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all control messages."""


# gateway <-> scheduler ------------------------------------------------------------------------------------------


class GatewayHello(Message, frozen=True):
    """A gateway asks for the model and the limits; repeated as its heartbeat."""

    version: int


class Welcome(Message, frozen=True):
    """The scheduler's answer; a new incarnation means that it restarted and knows nothing of earlier requests."""

    incarnation: str
    spec: ModelSpec
    max_request_tokens: int
    urls: list[str] = []  # of decode engines that take requests by HTTP


class Submit(Message, frozen=True):
    """Serve this; tokens go straight from the engines to `reply_to`."""

    submission: Submission
    reply_to: str


class Cancel(Message, frozen=True):
    """The client is gone."""

    request: RequestId


class Refused(Message, frozen=True):
    """The request ends without an answer; `by_request` tells whether it could ever be served."""

    request: RequestId
    message: str
    by_request: bool


class GetReport(Message, frozen=True):
    """Ask for a Report."""


class Report(Message, frozen=True):
    """The cluster's state."""

    report: ClusterReport


# agent -> scheduler ---------------------------------------------------------------------------------------------


class NodeHello(Message, frozen=True):
    """A node joins. `address` is its transport endpoint."""

    version: int
    node: NodeId
    role: Role
    spec: ModelSpec
    address: str
    slots: int
    write_slots: int  # the arena's share that is for write-back only
    read_rate_bytes_per_s: float


class NodeAccepted(Message, frozen=True):
    """The scheduler took the node in."""

    incarnation: str


class NodeRefused(Message, frozen=True):
    """The node cannot belong to this cluster; `message` names the mend."""

    message: str


class Rejoin(Message, frozen=True):
    """The scheduler does not know the node (any more): drop all grants and say hello again."""


class NodeReport(Message, frozen=True):
    """Heartbeat with counters. `grants_seen` is how many Open messages came in: corrections apply only when all did.

    `reads_left` counts planned blocks whose ReadsAdvanced is still to come: it agrees with the messages around it.
    """

    stats: NodeStats
    engines: list[EngineStats]
    grants_seen: int
    reads_left: int = 0


class EngineJoined(Message, frozen=True):
    """An engine attached to the node."""

    engine: EngineId
    kv_tokens: int  # KV memory; of a reference prefill engine: its window, which bounds a request
    process_tokens_per_s: float
    url: str = ""


class EngineLost(Message, frozen=True):
    """An engine's connection to its agent is gone."""

    engine: EngineId


class ReadsAdvanced(Message, frozen=True):
    """So many more blocks of this grant were read from storage (or came along with another request's read)."""

    grant: int
    blocks: int
    bytes_read: int


class ReadsFinished(Message, frozen=True):
    """All blocks that this node had to bring in by itself are readable in its arena."""

    grant: int
    retained_bytes: int = 0


class CopyFinished(Message, frozen=True):
    """The decode node has pulled the blocks that the prefill node read."""

    grant: int


class FetchFinished(Message, frozen=True):
    """The decode node has fetched the blocks that the relay read."""

    grant: int


class StepFailed(Message, frozen=True):
    """The attempt cannot go on."""

    grant: int
    cause: str


class BlockLost(Message, frozen=True):
    """A read found that the store does not hold this block, or held it corrupt: it is deleted."""

    key: bytes


class BlockHeld(Message, frozen=True):
    """A new block is complete in the grant's slot and waits to be written."""

    grant: int
    slot: int
    key: bytes


class BlockWritten(Message, frozen=True):
    """The write-back of a held block ended: durable, or skipped."""

    slot: int
    key: bytes
    durable: bool


class Released(Message, frozen=True):
    """Nothing on this node reads or writes the grant's slots any more, here or on its peer."""

    grant: int


# scheduler -> agent ---------------------------------------------------------------------------------------------


class ReadItem(msgspec.Struct, frozen=True, array_like=True):
    """Read the block under `key` from storage into `slot`."""

    slot: int
    key: bytes


class RetainedItem(msgspec.Struct, frozen=True, array_like=True):
    """Fetch a block that another arena (or our own) still holds into `slot`."""

    slot: int
    peer: str
    peer_slot: int
    peer_grant: int


class OpenPrefill(Message, frozen=True):
    """A prefill node's part of an attempt."""

    grant: int
    engine: EngineId
    peer: str  # the decode node's transport address
    slots: list[int]  # own slots, one per block that this node reads
    blocks: list[int]  # which block of the prompt lies in each
    reads: list[ReadItem]
    peer_slots: list[int]  # the decode node's slot of every block, prompt and to come


class OpenDecode(Message, frozen=True):
    """A decode node's part of an attempt."""

    grant: int
    engine: EngineId
    peer: str  # the prefill node's transport address
    slots: list[int]  # one per block, prompt and all tokens to come
    reads: list[ReadItem]
    retained: list[RetainedItem]
    pulls: list[tuple[int, int]]  # (own slot, prefill node's slot)


class OpenRelay(Message, frozen=True):
    """A third node's part of an attempt: it reads, and the decode node fetches."""

    grant: int
    slots: list[int]
    reads: list[ReadItem]


class StartPull(Message, frozen=True):
    """The prefill node's blocks are readable: copy them over, in the background lane."""

    grant: int


class StartFetch(Message, frozen=True):
    """The relay's blocks are readable: the decode node copies them over, in the background lane."""

    grant: int
    peer: str  # the relay's transport address
    pairs: list[tuple[int, int]]  # (own slot, relay's slot)


class PersistItem(msgspec.Struct, frozen=True, array_like=True):
    """Write the block in `slot` under `key`, after its parent (empty: it has none)."""

    slot: int
    key: bytes
    parent: bytes


class Persist(Message, frozen=True):
    """New prompt blocks are complete in the decode node's arena: write them back."""

    grant: int
    items: list[PersistItem]


class Release(Message, frozen=True):
    """Stop all that this grant still does here and answer Released."""

    grant: int


# scheduler -> engine (relayed) ----------------------------------------------------------------------------------


class StartPrefill(Message, frozen=True):
    """All hit blocks are readable: the request may enter a prefill batch."""

    grant: int
    engine: EngineId
    request: RequestId
    tokens: bytes
    cached_tokens: int
    max_tokens: int
    sampling: Sampling
    reply_to: str
    own_tokens: int = 0  # of the cached ones, read by the prefill node


class StartDecode(Message, frozen=True):
    """The arena holds the whole prompt's KV: copy it and join the decode batch."""

    grant: int
    engine: EngineId
    request: RequestId
    tokens: bytes  # prompt
    first_token: int
    max_tokens: int
    sampling: Sampling
    slots: list[int]
    parent_key: bytes  # key of the prompt's last full block, or the root
    reply_to: str


# engine -> scheduler (relayed) ----------------------------------------------------------------------------------


class PrefillStarted(Message, frozen=True):
    """The request's first chunk is in a batch."""

    grant: int


class PrefillFinished(Message, frozen=True):
    """All prompt KV is in the decode node's arena; the first token is sampled and on its way to the client."""

    grant: int
    token: int
    layer_wait_ns: int
    reason: FinishReason | None = None  # set when the first token is also the last


class DecodeStarted(Message, frozen=True):
    """The request joined the decode batch."""

    grant: int


class DecodeFinished(Message, frozen=True):
    """The last token is on its way to the client."""

    grant: int
    reason: FinishReason
    completion_tokens: int


ToScheduler = (
    GatewayHello | Submit | Cancel | GetReport | NodeHello | NodeReport | EngineJoined | EngineLost | ReadsAdvanced
    | ReadsFinished | CopyFinished | FetchFinished | StepFailed | BlockLost | BlockHeld | BlockWritten | Released
    | PrefillStarted | PrefillFinished | DecodeStarted | DecodeFinished
)  # fmt: skip
ToGateway = Welcome | Refused | Report | Done
EngineToGateway = Tokens | Ready
ToAgent = (
    NodeAccepted | NodeRefused | Rejoin | OpenPrefill | OpenDecode | OpenRelay | StartPull | StartFetch | Persist
    | Release | StartPrefill | StartDecode
)  # fmt: skip


def encode(message: Any) -> bytes:
    """One message as bytes."""
    return msgspec.msgpack.encode(message)


class Decoder:
    """Decodes one direction's messages; anything else is a ProtocolError."""

    def __init__(self, kinds: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(kinds)

    def decode(self, data: bytes | memoryview) -> Any:
        """The message in `data`."""
        if len(data) > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"control message of {len(data)} bytes; the limit is {MAX_MESSAGE_BYTES}")
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ProtocolError(f"not a control message of protocol {PROTOCOL_VERSION}: {error}") from None
