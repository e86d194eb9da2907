"""Traces that name blocks by ids: their prompts are given in full, whatever the model answers."""

from collections.abc import Iterable, Iterator

from dualpath.core.errors import ConfigError
from dualpath.workload.content import Drawn, Piece, Vocabulary
from dualpath.workload.model import Session, Turn
from dualpath.workload.records import MooncakeRecord, WekaRecord, WekaRequest

Run = tuple[int, int]  # first id, count

_MOONCAKE_BLOCK = 512
_OTHER_BLOCKS = (16, 32, 64, 128, 256, 1024)


def runs_of(ids: Iterable[int]) -> tuple[Run, ...]:
    """A list of ids as runs of consecutive ones."""
    return join_runs((first, 1) for first in ids)


def join_runs(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Runs that continue each other, joined."""
    joined: list[Run] = []
    for first, count in runs:
        if joined and sum(joined[-1]) == first:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        elif count:
            joined.append((first, count))
    return tuple(joined)


def first_blocks(runs: tuple[Run, ...], blocks: int) -> Iterator[Run]:
    """The runs of the first `blocks` ids."""
    for first, count in runs:
        if blocks <= 0:
            return
        yield first, min(count, blocks)
        blocks -= count


def block_prompt(
    runs: tuple[Run, ...],
    block_tokens: int,
    prompt_tokens: int,
    vocabulary: Vocabulary,
    *,
    scope: str,
    tail: str,
) -> tuple[Piece, ...]:
    """A prompt of `prompt_tokens`: its blocks, the last one cut, or, where ids name full blocks only, a
    tail of its own.
    """
    pieces: list[Piece] = []
    left = prompt_tokens
    for first, count in runs:
        tokens = min(left, count * block_tokens)
        if tokens:
            pieces.append(Drawn(vocabulary, scope, tokens, first * block_tokens, block_tokens))
        left -= tokens
    return (*pieces, Drawn(vocabulary, tail, left)) if left else tuple(pieces)


def weka_sessions(record: WekaRecord, number: int, vocabulary: Vocabulary) -> Iterator[Session]:
    """The session, and each of its sub-agents as a session of its own that starts when the sub-agent did.

    A sub-agent's time stamp is that of its end; the main session waits for it in the gap of its next turn.
    Ids local to record `number` are shared by it and its sub-agents.
    """
    scope = f"weka/{number}" if record.hash_id_scope == "local" else "weka"
    agents = [(str(record.id), 0.0, record.requests)]
    for place, (name, start_s, requests) in enumerate(agents):  # grows by the sub-agents met on the way
        asked = [request for request in requests if request.kind != "subagent"]
        if asked:
            tail = f"tail/{number}/{place}"
            turns = _weka_turns(asked, record.block_size, vocabulary, scope=scope, tail=tail)
            yield Session(name, turns, start_s)
        for agent in (request for request in requests if request.kind == "subagent"):
            begun_s = start_s + max(0.0, agent.t - (agent.duration_ms or 0.0) / 1000)
            agents.append((f"{name}/{agent.agent_id or len(agents)}", begun_s, agent.requests))


def _weka_turns(
    requests: list[WekaRequest], block_tokens: int, vocabulary: Vocabulary, *, scope: str, tail: str
) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    runs: tuple[Run, ...] = ()
    last: WekaRequest | None = None
    for request in requests:
        if request.hash_ids is not None:
            runs = runs_of(request.hash_ids)
        else:
            if request.keep > sum(count for _, count in runs):
                raise ConfigError(f"request {len(turns)} keeps {request.keep} blocks, more than there were")
            runs = join_runs([*first_blocks(runs, request.keep), *request.new])
        prompt = block_prompt(
            runs, block_tokens, request.prompt_tokens, vocabulary, scope=scope, tail=f"{tail}/{len(turns)}"
        )
        turns.append(Turn(prompt, max(1, request.out), keep_tokens=0, gap_s=_weka_gap_s(last, request)))
        last = request
    return tuple(turns)


def _weka_gap_s(last: WekaRequest | None, request: WekaRequest) -> float:
    """The recorded think time; where it is not, the time stamps' difference without the answer's time."""
    if last is None:
        return 0.0
    if request.think_time is not None:
        return max(0.0, request.think_time)
    return max(0.0, request.t - last.t - (last.api_time or 0.0))


def mooncake_sessions(
    records: Iterable[MooncakeRecord], vocabulary: Vocabulary, limit_sessions: int | None
) -> list[Session]:
    """Requests grouped into sessions: a request continues the session whose last prompt's full blocks it
    begins with.

    The trace does not name sessions. A first block alone (a system prompt that all share) does not join
    requests. Gaps are differences of time stamps and contain the recorded service's own time.
    """
    block_tokens = 0
    open_sessions: dict[int, int] = {}  # last full block's id -> session
    turns: list[list[Turn]] = []
    arrivals: list[list[float]] = []
    for record in records:
        block_tokens = block_tokens or _block_tokens(record)
        full = record.input_length // block_tokens
        session = _continued(record.hash_ids[:full], open_sessions)
        if session is None:
            session = len(turns)
            turns.append([])
            arrivals.append([])
        if full > 1:
            open_sessions[record.hash_ids[full - 1]] = session
        if limit_sessions is not None and session >= limit_sessions:
            continue
        now_s = record.timestamp / 1000
        gap_s = max(0.0, now_s - arrivals[session][-1]) if arrivals[session] else 0.0
        prompt = block_prompt(
            runs_of(record.hash_ids), block_tokens, record.input_length, vocabulary,
            scope="mooncake", tail=f"tail/{session}/{len(turns[session])}",
        )  # fmt: skip
        turns[session].append(Turn(prompt, max(1, record.output_length), keep_tokens=0, gap_s=gap_s))
        arrivals[session].append(now_s)
    named = zip(turns[:limit_sessions], arrivals, strict=False)
    return [Session(f"request-{index}", tuple(t), a[0]) for index, (t, a) in enumerate(named)]


def _continued(full_ids: list[int], open_sessions: dict[int, int]) -> int | None:
    for last in reversed(full_ids[1:]):
        if last in open_sessions:
            return open_sessions.pop(last)
    return None


def _block_tokens(record: MooncakeRecord) -> int:
    """Tokens a block: 512, unless the count of ids shows that a trace in this format uses another size."""
    for size in (_MOONCAKE_BLOCK, *_OTHER_BLOCKS):
        if len(record.hash_ids) in (record.input_length // size, -(-record.input_length // size)):
            return size
    return _MOONCAKE_BLOCK
