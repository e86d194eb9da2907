"""The snapshots that policies decide on. The scheduler counts: assigned minus completed, in tokens."""

import msgspec

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import BlockRange


class EngineLoad(msgspec.Struct, frozen=True):
    """One engine e: seq_e, tok_e, its node's read_q, and (decode only) the KV memory not yet promised."""

    engine: EngineId
    requests: int  # seq_e
    tokens: int  # tok_e
    read_queue_tokens: int  # read_q of the engine's node
    free_kv_tokens: int = 0


class NodeLoad(msgspec.Struct, frozen=True):
    """One node's storage read queue and the rate at which it was measured to read."""

    node: NodeId
    read_queue_tokens: int
    read_tokens_per_s: float


class ReadChoice(msgspec.Struct, frozen=True):
    """All that a read policy knows of one request: its hit, the nodes that may read it, and what computing costs.

    0 stands for what is not known or not measured yet; a policy then decides without it.
    """

    hit: BlockRange
    prefill: NodeLoad
    decode: NodeLoad
    block_tokens: int
    turn: int  # non-empty plans made so far
    spare: NodeLoad | None = None  # of all other nodes the one whose read queue ends soonest
    compute_wait_s: float = 0.0  # until the chosen prefill engine has done what it has
    compute_tokens_per_s: float = 0.0  # new tokens that it computes, cached ones not counted


class Limits(msgspec.Struct, frozen=True):
    """alpha: tokens that storage can read in 3 s; beta: tokens one engine can process in 5 s."""

    alpha_tokens: int
    beta_tokens: int


class Pending(msgspec.Struct, frozen=True):
    """A request that waits for a decode engine; `tokens` counts the prompt and all tokens to come."""

    request: RequestId
    tokens: int


class Placement(msgspec.Struct, frozen=True):
    """A decode engine for a waiting request."""

    request: RequestId
    engine: EngineId
