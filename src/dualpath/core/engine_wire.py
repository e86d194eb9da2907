"""Control messages between a node's agent and its engines, over the agent's Unix socket: see core/wire.py."""

import msgspec

from dualpath.core.ids import EngineId
from dualpath.core.model import ModelSpec
from dualpath.core.report import EngineStats, Role
from dualpath.core.wire import (
    DecodeFinished,
    DecodeStarted,
    Message,
    PrefillFinished,
    PrefillStarted,
    StartDecode,
    StartPrefill,
    StepFailed,
)

GRANT_PARAMETER = "dualpath"  # key of kv_transfer_params in a call of an engine: {"grant": ..., "sequences": ...}


class EngineHello(Message, frozen=True):
    """An engine attaches to its node's agent."""

    version: int
    engine: EngineId  # empty: the agent names a free one
    role: Role | None  # None: whatever its node is
    spec: ModelSpec
    kv_tokens: int  # as in wire.EngineJoined
    window_tokens: int  # of one half of a prefill engine's window
    process_tokens_per_s: float
    ranks: int = 1  # processes that share the window, each with its shard of every layer block
    url: str = ""  # where its requests come in by HTTP; empty: they come from the agent


class EngineAccepted(Message, frozen=True):
    """Answer to EngineHello."""

    engine: EngineId
    role: Role


class EngineServes(Message, frozen=True):
    """An engine with a url can be called there from now on; only then may it be given work."""


class EngineRefused(Message, frozen=True):
    """The engine does not fit this agent; `message` names the mend."""

    message: str


class HelloAgain(Message, frozen=True):
    """The agent has learned the model from this engine; it serves a moment later."""


class RankHello(Message, frozen=True):
    """A process of an attached engine wants the memory that it shares with the agent."""

    version: int
    engine: EngineId
    rank: int


class RankAccepted(Message, frozen=True):
    """With it come the fds of the arena, and for prefill of the window, the rank's control page and its two bells."""

    role: Role


class StreamItem(msgspec.Struct, frozen=True, array_like=True):
    """One request's place in a prefill batch: whole cached blocks to bring in, then new tokens to take out.

    Both are counted from the prompt's beginning. In the window the block of the first new token follows the last cached
    one. Of an opaque layout whole layer blocks are taken out, also where new tokens fill only a part of one.
    """

    grant: int
    fill_start: int
    fill_blocks: int
    push_start: int
    push_tokens: int


class StreamBatch(Message, frozen=True):
    """Stream these requests' layers through the window: layer s of the batch has sequence `first_layer` + s."""

    first_layer: int
    items: list[StreamItem]


class BatchFailed(Message, frozen=True):
    """A transfer of the batch failed; the attempts in it are over."""

    first_layer: int
    cause: str


class BlockFilled(Message, frozen=True):
    """A decode engine copied a complete generated block into the grant's slot; an empty parent: it is the first."""

    grant: int
    slot: int
    key: bytes
    parent: bytes


class DropGrant(Message, frozen=True):
    """Agent to engine: forget this grant and answer GrantDropped once nothing of yours touches its slots."""

    grant: int


class GrantDropped(Message, frozen=True):
    """Engine to agent: done."""

    grant: int


class EngineReport(Message, frozen=True):
    """An engine's counters, about once a second."""

    stats: EngineStats


EngineToAgent = (
    EngineHello | EngineServes | RankHello | StreamBatch | BlockFilled | GrantDropped | EngineReport | PrefillStarted
    | PrefillFinished | DecodeStarted | DecodeFinished | StepFailed
)  # fmt: skip
AgentToEngine = (
    EngineAccepted | EngineRefused | HelloAgain | RankAccepted | StartPrefill | StartDecode | DropGrant | BatchFailed
)
