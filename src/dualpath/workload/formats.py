"""From the records of each trace format to sessions."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from dualpath.workload.content import Drawn, Vocabulary
from dualpath.workload.hashes import mooncake_sessions, weka_sessions
from dualpath.workload.messages import Render, answer_exchange, message_exchanges
from dualpath.workload.model import Session, Turn
from dualpath.workload.records import (
    FlatRecord,
    LengthsRecord,
    MessagesRecord,
    MooncakeRecord,
    TauBenchRecord,
    WekaRecord,
)
from dualpath.workload.text import Exchange, Tokenize, text_turns


class Context(msgspec.Struct, frozen=True):
    """What readers need besides the records."""

    vocabulary: Vocabulary
    tokenize: Tokenize
    render: Render
    limit_sessions: int | None


def lengths(records: Iterable[LengthsRecord], context: Context) -> Iterator[Session]:
    """Closed loop over numbers.

    The append makes up the recorded prompt, so it covers the template's tokens too.
    """
    for number, record in enumerate(records):
        turns: list[Turn] = []
        history = 0
        for index, row in enumerate(record.turns):
            kept = min(history, max(0, row.prompt - row.append))
            added = row.prompt - kept
            content = (Drawn(context.vocabulary, f"append/{number}/{index}", added),) if added else ()
            keep_tokens = None if kept == history else kept
            turns.append(Turn(content, max(1, row.out), keep_tokens=keep_tokens, gap_s=max(0.0, row.gap_s or 0.0)))
            history = row.prompt + turns[-1].gen_tokens
        yield from _session(str(record.id), tuple(turns))


def weka(records: Iterable[WekaRecord], context: Context) -> Iterator[Session]:
    """Sessions and sub-agents of block ids."""
    for number, record in enumerate(records):
        yield from weka_sessions(record, number, context.vocabulary)


def mooncake(records: Iterable[MooncakeRecord], context: Context) -> Iterable[Session]:
    """Requests of block ids, grouped."""
    return mooncake_sessions(records, context.vocabulary, context.limit_sessions)


def flattened(records: Iterable[FlatRecord], context: Context) -> Iterator[Session]:
    """Requests with the whole prompt as text, grouped by session; gaps contain the recorded service's own
    time.
    """
    requests: dict[str, list[Exchange]] = defaultdict(list)
    times: dict[str, float] = {}
    for record in records:
        session_id = str(record.session_id)
        if not _beyond(session_id, requests, context):
            gap_s = _gap_s(session_id, record.timestamp / 1e6, times)
            requests[session_id].append(Exchange(record.input, record.output, gap_s))
    for session_id, exchanges in requests.items():
        yield from _session(session_id, text_turns(exchanges, context.tokenize))


def tau_bench(records: Iterable[TauBenchRecord], context: Context) -> Iterator[Session]:
    """Conversations with tools."""
    for record in records:
        exchanges = message_exchanges(record.traj, context.render)
        yield from _session(f"task-{record.task_id}/{record.trial}", text_turns(exchanges, context.tokenize))


def conversations(records: Iterable[MessagesRecord], context: Context) -> Iterator[Session]:
    """Each line a conversation; lines with a `session_id` are single requests of that session, in the
    file's order.
    """
    requests: dict[str, list[Exchange]] = defaultdict(list)
    times: dict[str, float] = {}
    for index, record in enumerate(records):
        if record.session_id is None:
            exchanges = message_exchanges(record.messages, context.render)
            name = f"line-{index + 1}" if record.id is None else str(record.id)
            yield from _session(name, text_turns(exchanges, context.tokenize))
        elif not _beyond(session_id := str(record.session_id), requests, context):
            gap_s = _gap_s(session_id, record.timestamp or 0.0, times)
            requests[session_id].append(_logged_request(record, context.render, gap_s))
    for session_id, logged in requests.items():
        yield from _session(session_id, text_turns(logged, context.tokenize))


def _gap_s(session_id: str, now_s: float, times: dict[str, float]) -> float:
    """Time since the session's request before, which it replaces in `times`."""
    gap_s = max(0.0, now_s - times.get(session_id, now_s))
    times[session_id] = now_s
    return gap_s


def _logged_request(record: MessagesRecord, render: Render, gap_s: float) -> Exchange:
    """A request: its answer is the last message, or unknown; then only its recorded length counts."""
    last = record.messages[-1] if record.messages else {}
    if len(record.messages) > 1 and last.get("role") == "assistant":
        return answer_exchange(record.messages[:-1], last, render, gap_s=gap_s)
    return Exchange(render(record.messages), "", gap_s=gap_s, gen_tokens=record.max_tokens or 1)


def _beyond(session_id: str, known: dict[str, list[Exchange]], context: Context) -> bool:
    """Whether this session is one more than wanted."""
    limit = context.limit_sessions
    return limit is not None and session_id not in known and len(known) >= limit


def _session(name: str, turns: tuple[Turn, ...]) -> Iterator[Session]:
    """The session, unless nobody was asked anything in it."""
    if turns:
        yield Session(name, turns)
