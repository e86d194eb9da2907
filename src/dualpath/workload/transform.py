"""Workloads made smaller: shorter lengths, fewer turns, bounded contexts."""

from msgspec.structs import replace

from dualpath.core.errors import ConfigError
from dualpath.workload.content import shrunk_length
from dualpath.workload.model import Session, Turn, base_of, planned_prompts

_Span = tuple[int, int]  # length of one part of a history: before, after


def first_turns(session: Session, n: int) -> Session:
    """The session's first n turns."""
    return replace(session, turns=session.turns[:n])


def cut(session: Session, *, max_context: int) -> Session:
    """End the session before the first turn whose prompt and generation together exceed `max_context`
    tokens.
    """
    for index, prompt in enumerate(planned_prompts(session.turns)):
        if prompt + session.turns[index].gen_tokens > max_context:
            return first_turns(session, index)
    return session


def shrink(session: Session, k: int) -> Session:
    """Divide all lengths by k, at least one token each; the turns and what they share stay.

    Blocks named by ids shrink as blocks. `keep_tokens` is mapped part by part, so that a cut between two
    parts of a history stays exactly there.
    """
    if k < 1:
        raise ConfigError(f"a workload cannot shrink by {k}; give a whole number of at least 1")
    turns: list[Turn] = []
    histories: list[tuple[_Span, ...]] = []
    for index, turn in enumerate(session.turns):
        base = base_of(session.turns, index)
        history = histories[base] if base >= 0 else ()
        kept = history if turn.keep_tokens is None else _first(history, turn.keep_tokens, k)
        append = tuple(piece.shrunk(k) for piece in turn.append)
        small = replace(turn, append=append, gen_tokens=shrunk_length(turn.gen_tokens, k))
        if turn.keep_tokens is not None:
            small = replace(small, keep_tokens=sum(after for _, after in kept))
        turns.append(small)
        added = tuple((old.tokens, new.tokens) for old, new in zip(turn.append, append, strict=True))
        histories.append((*kept, *added, (turn.gen_tokens, small.gen_tokens)))
    return replace(session, turns=tuple(turns))


def _first(history: tuple[_Span, ...], keep: int, k: int) -> tuple[_Span, ...]:
    """The spans of a history's first `keep` tokens; a span that is cut shrinks by k too."""
    kept: list[_Span] = []
    for before, after in history:
        if keep <= 0:
            break
        part = min(keep, before)
        kept.append((part, after if part == before else min(after, part // k)))
        keep -= part
    return tuple(kept)
