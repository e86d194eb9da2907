"""What a client asks for, and what it gets."""

import enum

import msgspec

from dualpath.core.ids import RequestId
from dualpath.core.report import Role


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are chosen. Keyed by (seed, position): the same request repeats its tokens, also after a failure."""

    temperature: float = 0.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = all
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


class FinishReason(enum.StrEnum):
    """Why a generation ended, in OpenAI's words."""

    STOP = "stop"  # end-of-sequence token or stop string
    LENGTH = "length"


class Timeline(msgspec.Struct):
    """Where a request's time went: nanoseconds since its arrival at the scheduler; -1 = did not happen.

    Read bytes are from storage, by the node that read them; retained bytes came from an arena that still held them.
    """

    dispatched_ns: int = -1
    prefill_side_loaded_ns: int = -1  # the prefill node's own reads done
    decode_side_loaded_ns: int = -1  # the decode node's own reads done, and what a third node read is there
    prefill_started_ns: int = -1
    prefill_finished_ns: int = -1
    decode_started_ns: int = -1
    finished_ns: int = -1
    prefill_engine: str = ""
    decode_engine: str = ""
    read_bytes_prefill: int = 0
    read_bytes_decode: int = 0
    read_bytes_relay: int = 0  # by a third node, for the decode node
    retained_bytes: int = 0
    layer_wait_ns: int = 0  # sum of what the prefill engine waited for layers to arrive
    attempts: int = 0
    recompute_causes: list[str] = msgspec.field(default_factory=list)


class Submission(msgspec.Struct, frozen=True):
    """A request as the gateway hands it to the scheduler."""

    request: RequestId
    tokens: bytes  # packed prompt (core.keys.pack_tokens)
    root: bytes  # parent of the first block (core.keys.root_key)
    keys: tuple[bytes, ...]  # keys of its full blocks
    max_tokens: int  # tokens to generate, at least 1
    sampling: Sampling

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.tokens) // 4

    @property
    def total_tokens(self) -> int:
        """Prompt and all tokens that may still come: what slots and KV memory are reserved for."""
        return self.prompt_tokens + self.max_tokens


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """Generated tokens [index, index + len(ids)); gaps are the distances between the two best logits."""

    request: RequestId
    index: int
    ids: list[int]
    gaps: list[float]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """An engine that computes what comes by HTTP waits for the request's prompt under this grant."""

    request: RequestId
    grant: int
    role: Role
    url: str
    cached_tokens: int = 0  # prefill: of the prompt, from storage or another arena


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The last word on a request that was served; it follows all of its tokens."""

    request: RequestId
    reason: FinishReason
    completion_tokens: int
    cached_tokens: int
    timeline: Timeline
