"""One attempt of one request, as the simulated nodes see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dualpath.core.ids import RequestId
from dualpath.policy.batch import PrefillWork
from dualpath.protocol.events import Assign

if TYPE_CHECKING:
    from dualpath.sim.decode import DecodeEngine
    from dualpath.sim.prefill import PrefillEngine


@dataclass(slots=True, eq=False)
class Ask:
    """A request of an agent; times are the kernel's, -1 until they are known."""

    request: RequestId
    agent: int
    turn: int
    prompt_tokens: int
    gen_tokens: int
    hit_blocks: int
    sent_ns: int
    first_ns: int = -1
    second_ns: int = -1


@dataclass(slots=True, eq=False)
class Grant:
    """Where its KV comes from and goes to. `ended`: whatever still runs for it counts for nothing."""

    assign: Assign
    ask: Ask
    prefill: PrefillEngine
    decode: DecodeEngine
    cached_tokens: int  # the hit
    local_tokens: int  # of the hit: read by the prefill node
    work: PrefillWork
    assigned_ns: int
    loaded_ns: int = -1  # the hit is readable
    entered_ns: int = -1  # the decode engine has all of it
    bringing: int = 0  # what the decode node waits for: its reads, kept blocks
    moving: int = 0  # transfers that it waits for before its pass
    ended: bool = False
    decoding: bool = False
    ends_at_step: int = -1

    @property
    def number(self) -> int:
        """The grant's number."""
        return self.assign.grant
