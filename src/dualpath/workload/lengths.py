"""Sessions as lengths alone, for simulators of ten thousands of agents: no token is ever made for generated ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dualpath.core.errors import ConfigError
from dualpath.workload.model import Session
from dualpath.workload.paper import drawn_lengths, preset_named
from dualpath.workload.prefixes import PrefixIndex
from dualpath.workload.statistics import session_rows

Tokens = NDArray[np.int32]
_NO_GAPS: dict[int, NDArray[np.float32]] = {}  # by number of turns: one array for all generated agents of a preset


@dataclass(frozen=True, slots=True, eq=False)
class SessionLengths:
    """An agent's turns as arrays; every turn generates its planned tokens."""

    prompt: Tokens
    gen: Tokens
    reuse: Tokens  # leading tokens of the prompt that earlier histories (prompt and generation) hold
    gap_s: NDArray[np.float32]  # wait before a turn, after the answer to the one before
    start_s: float = 0.0

    def __len__(self) -> int:
        return len(self.prompt)

    def first_turns(self, n: int) -> "SessionLengths":
        """The first n turns."""
        if n < 0:
            raise ConfigError(f"a session cannot be cut to {n} turns")
        return SessionLengths(self.prompt[:n], self.gen[:n], self.reuse[:n], self.gap_s[:n], self.start_s)

    def cut(self, *, max_context: int) -> "SessionLengths":
        """End before the first turn whose prompt and generation together exceed `max_context` tokens."""
        over = self.prompt + self.gen > max_context
        return self.first_turns(int(over.argmax())) if over.any() else self

    def shrink(self, k: int) -> "SessionLengths":
        """Divide all lengths by k, at least one token each. ConfigError where turns do not all build on the last one:
        there lengths do not tell what parts a cut history has; shrink the Session itself first.
        """
        if k < 1:
            raise ConfigError(f"a workload cannot shrink by {k}; give a whole number of at least 1")
        if k == 1:
            return self
        if not self.is_closed_loop():
            raise ConfigError("only generated agents shrink as lengths; shrink a trace's sessions, then take lengths")
        append = (self.prompt - self.reuse) // k
        return _closed_loop(append.clip(min=self.prompt > self.reuse), (self.gen // k).clip(min=1), self)

    def is_closed_loop(self) -> bool:
        """Whether each prompt is the whole history before it, and an append."""
        held = self.prompt + self.gen
        return not len(self) or bool(self.reuse[0] == 0 and (self.reuse[1:] == held[:-1]).all())


def generated_lengths(
    preset: str, index: int, seed: int, append_factor: float = 1.0, gen_factor: float = 1.0
) -> SessionLengths:
    """Agent `index` of workload.generate with this seed, turn by turn the same; the factors scale the appends after
    the first prompt, and the generations. ConfigError for an unknown preset or an impossible factor.
    """
    if index < 0 or append_factor <= 0 or gen_factor <= 0:
        raise ConfigError(f"agent {index} with factors {append_factor} and {gen_factor}: give 0 or more, and above 0")
    return _closed_loop(*drawn_lengths(preset_named(preset), index, seed, append_factor, gen_factor))


def session_lengths(session: Session, block_tokens: int) -> SessionLengths:
    """Of any session, also one whose histories shrink, restart or interleave; reuse from its own turns."""
    return _measured(session, PrefixIndex(block_tokens))


def shared_lengths(sessions: Sequence[Session], block_tokens: int) -> list[SessionLengths]:
    """The same with reuse from other sessions too: all turns of those that started before (of equals: came first)."""
    index = PrefixIndex(block_tokens)
    order = sorted(range(len(sessions)), key=lambda at: sessions[at].start_s)
    lengths = {at: _measured(sessions[at], index) for at in order}
    return [lengths[at] for at in range(len(sessions))]


def shortened(
    session: SessionLengths, *, turns: int | None = None, shrink: int = 1, max_context: int | None = None
) -> SessionLengths:
    """First turns, then shrunk, then cut, as experiments do it."""
    session = session if turns is None else session.first_turns(turns)
    session = session.shrink(shrink)
    return session if max_context is None else session.cut(max_context=max_context)


def _closed_loop(append: Tokens, gen: Tokens, like: SessionLengths | None = None) -> SessionLengths:
    """Turns that each append to the whole history before; gaps and start as those of `like`."""
    held = np.cumsum(append + gen, dtype=np.int32)
    prompt = held - gen
    gap_s = like.gap_s if like else _NO_GAPS.setdefault(len(append), np.zeros(len(append), np.float32))
    return SessionLengths(prompt, gen, prompt - append, gap_s, like.start_s if like else 0.0)


def _measured(session: Session, index: PrefixIndex) -> SessionLengths:
    rows = session_rows(session, index)
    columns = ([row.prompt for row in rows], [row.gen for row in rows], [row.hit_tokens for row in rows])
    prompt, gen, reuse = (np.array(column, np.int32) for column in columns)
    return SessionLengths(prompt, gen, reuse, np.array([t.gap_s for t in session.turns], np.float32), session.start_s)
