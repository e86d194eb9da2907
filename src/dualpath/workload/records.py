"""What one line of each trace format holds.

Fields that are not used are not named; msgspec checks the rest.
"""

from typing import Annotated, Any

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]


class LengthsRow(msgspec.Struct, array_like=True):
    """A turn as numbers; what follows in a row is the provider's own count."""

    append: Count
    out: Count
    prompt: Count
    gap_s: float | None = None


class LengthsRecord(msgspec.Struct):
    """A session as numbers: {id, turns: [[append, out, prompt, gap_s or null, ...]]}."""

    id: str | int
    turns: list[LengthsRow]


class WekaRequest(msgspec.Struct, rename={"prompt_tokens": "in", "kind": "type"}):
    """A request ("n", "s") with its block ids as a difference or in full, or a sub-agent with its own."""

    t: float
    kind: str
    prompt_tokens: Count = 0
    out: Count = 0
    think_time: float | None = None
    api_time: float | None = None
    keep: Count = 0
    new: list[tuple[Count, Count]] = []
    hash_ids: list[Count] | None = None
    agent_id: str = ""
    duration_ms: float | None = None
    requests: list["WekaRequest"] = []


class WekaRecord(msgspec.Struct):
    """A session of coding-agent requests."""

    id: str | int
    requests: list[WekaRequest]
    block_size: Annotated[int, msgspec.Meta(ge=1)] = 64
    hash_id_scope: str = "local"


class MooncakeRecord(msgspec.Struct):
    """A request with the ids of its blocks, global to the trace."""

    timestamp: float  # ms
    input_length: Count
    output_length: Count
    hash_ids: list[Count]


class FlatRecord(msgspec.Struct):
    """A request with its whole prompt as one text."""

    input: str
    output: str
    session_id: str | int
    timestamp: float = 0.0  # us


class TauBenchRecord(msgspec.Struct):
    """A conversation with tools."""

    task_id: int | str
    traj: list[dict[str, Any]]
    trial: int = 0

    def __post_init__(self) -> None:
        check_messages(self.traj)


class MessagesRecord(msgspec.Struct):
    """A conversation; or, when several lines name one session, a request of it, its answer as the last
    message.
    """

    messages: list[dict[str, Any]]
    id: str | int | None = None
    session_id: str | int | None = None
    timestamp: float | None = None  # s
    max_tokens: Count | None = None  # of a request without its answer

    def __post_init__(self) -> None:
        check_messages(self.messages)


def check_messages(messages: list[dict[str, Any]]) -> None:
    """Every message names its role; ValueError (msgspec turns it into its own) where one does not."""
    for index, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise ValueError(f'message {index} has no "role"')
