"""What a workload is made of, in the words of the paper's table, and the best prefix hit rate it allows."""

from collections.abc import Sequence

import msgspec

from dualpath.workload.content import total_tokens
from dualpath.workload.model import Session, planned_pieces
from dualpath.workload.prefixes import Chain, PrefixIndex


class WorkloadStatistics(msgspec.Struct, frozen=True):
    """Means over a workload in which every turn generates its planned tokens.

    Hits are ideal: whatever an earlier turn's prompt or output held is cached.
    """

    sessions: int
    requests: int
    turns: float  # a session
    total_tokens: float  # a session: the longest history, outputs included
    context_tokens: float  # a request: its prompt
    append_tokens: float  # a request but the first: what no earlier history held
    gen_tokens: float  # a request
    hit_tokens: float  # share of prompt tokens held by an earlier history
    hit_blocks: float  # the same in whole blocks
    request_hit_blocks: float  # mean over requests of each one's share in whole blocks


def workload_statistics(
    sessions: Sequence[Session], *, block_tokens: int = 64, across_sessions: bool = False
) -> WorkloadStatistics:
    """Statistics with hits in blocks of `block_tokens`, within sessions or also across them."""
    index = PrefixIndex(block_tokens)
    rows: list[Row] = []
    totals: list[int] = []
    for session in sessions:
        of_session = session_rows(session, index if across_sessions else PrefixIndex(block_tokens))
        totals.append(max((row.prompt + row.gen for row in of_session), default=0))
        rows.extend(of_session)
    later = [row for row in rows if not row.is_first]
    prompts = sum(row.prompt for row in rows)
    return WorkloadStatistics(
        sessions=len(sessions),
        requests=len(rows),
        turns=_ratio(len(rows), len(sessions)),
        total_tokens=_ratio(sum(totals), len(sessions)),
        context_tokens=_ratio(prompts, len(rows)),
        append_tokens=_ratio(sum(row.prompt - row.hit_tokens for row in later), len(later)),
        gen_tokens=_ratio(sum(row.gen for row in rows), len(rows)),
        hit_tokens=_ratio(sum(row.hit_tokens for row in rows), prompts),
        hit_blocks=_ratio(sum(row.hit_blocks for row in rows) * block_tokens, prompts),
        request_hit_blocks=_ratio(sum(row.hit_blocks * block_tokens / row.prompt for row in rows), len(rows)),
    )


class Row(msgspec.Struct, frozen=True):
    """A request: its lengths, and how much of its prompt was there before."""

    prompt: int
    gen: int
    hit_tokens: int
    hit_blocks: int
    is_first: bool


def session_rows(session: Session, index: PrefixIndex) -> list[Row]:
    """A session's requests in order, whose histories enter `index`."""
    rows: list[Row] = []
    chains: list[Chain] = []
    for base, prompt, output in planned_pieces(session):
        asked, hit = index.visit(prompt, chains[base] if base >= 0 else Chain())
        answered, _ = index.visit((*prompt, output), asked)
        chains.append(answered)
        rows.append(Row(total_tokens(prompt), output.tokens, hit.tokens, hit.blocks, not rows))
    return rows


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
