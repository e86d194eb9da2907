"""Recorded texts become turns: which earlier history a prompt repeats, and how far, is found by comparing
texts.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import msgspec

from dualpath.core.keys import pack_tokens
from dualpath.workload.content import Given
from dualpath.workload.model import Turn

Tokenize = Callable[[str], Sequence[int]]


class Exchange(msgspec.Struct, frozen=True):
    """One recorded request: the whole prompt as text, and what the model answered."""

    prompt: str
    output: str
    gap_s: float = 0.0
    gen_tokens: int = 0  # recorded length; counts where the output's text is not known


class _Part(msgspec.Struct, frozen=True):
    """A part of a history: appended text with its ids, or an output, whose ids are not known before the
    replay.
    """

    text: str
    tokens: int
    ids: tuple[int, ...] | None = None

    def starts(self, prompt: str, at: int) -> bool:
        """Whether the prompt repeats this part at a position; an output without text is never recognised."""
        return bool(self.text) and prompt.startswith(self.text, at)


class _Match(msgspec.Struct, frozen=True):
    """How far a prompt repeats a history: whole parts, then characters in all."""

    parts: tuple[_Part, ...]
    part_chars: int  # in the whole parts
    chars: int  # with the common beginning of the part that differs
    broken: _Part | None  # that part; None: the whole history is repeated


def text_turns(exchanges: Iterable[Exchange], tokenize: Tokenize) -> tuple[Turn, ...]:
    """The turns of one session; each builds on the earlier history that it repeats the most of.

    Kept outputs are the model's real ones; an output that a prompt leaves out or rewrites ends the kept
    part, and what follows is sent as recorded.
    """
    turns: list[Turn] = []
    histories: list[tuple[_Part, ...]] = [()]
    for exchange in exchanges:
        base, match = _best(exchange.prompt, histories)
        ids = tuple(tokenize(exchange.prompt[match.part_chars :]))
        known = match.broken.ids if match.broken and match.broken.ids else ()
        again = _common_length(known, ids)
        kept = sum(part.tokens for part in match.parts) + again
        gen_tokens = max(1, len(tokenize(exchange.output)) if exchange.output else exchange.gen_tokens)
        turns.append(
            Turn(
                append=(Given(pack_tokens(ids[again:])),) if ids[again:] else (),
                gen_tokens=gen_tokens,
                keep_tokens=kept if match.broken else None,
                base=base - 1 if kept and base < len(histories) - 1 else None,
                gap_s=exchange.gap_s,
            )
        )
        added = _Part(exchange.prompt[match.part_chars :], len(ids), ids)
        histories.append((*match.parts, added, _Part(exchange.output, gen_tokens)))
    return tuple(turns)


def _best(prompt: str, histories: list[tuple[_Part, ...]]) -> tuple[int, _Match]:
    """The history that the prompt repeats the most of, the latest of equals, and its index (0 = the empty
    one).
    """
    best, match = len(histories) - 1, _match(prompt, histories[-1])
    if match.broken is None:
        return best, match
    for index in range(len(histories) - 2, 0, -1):
        other = _match(prompt, histories[index])
        if other.chars > match.chars:
            best, match = index, other
    return best, match


def _match(prompt: str, history: tuple[_Part, ...]) -> _Match:
    at = 0
    for index, part in enumerate(history):
        if not part.starts(prompt, at):
            same = _common_length(part.text, prompt[at : at + len(part.text)]) if part.ids else 0
            return _Match(history[:index], at, at + same, part)
        at += len(part.text)
    return _Match(history, at, at, None)


def _common_length(left: Sequence[object], right: Sequence[object]) -> int:
    """Length of the common prefix of two strings or tuples, by bisection: slices compare fast."""
    bound = min(len(left), len(right))
    return bisect_left(range(1, bound + 1), True, key=lambda n: left[:n] != right[:n])
