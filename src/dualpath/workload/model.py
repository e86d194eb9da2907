"""Sessions and turns: what an agent sends, apart from what the model answers."""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from dualpath.core.errors import ConfigError
from dualpath.workload.content import Drawn, Piece, TokenArray, Vocabulary, materialize, prefix, total_tokens

_OUTPUTS = Vocabulary(2**32)  # planned outputs: any ids will do


class Turn(msgspec.Struct, frozen=True):
    """One request of a session: prompt = kept part of a history, then `append`; `gen_tokens` are generated.

    The history of a turn is its prompt and the model's real output. `keep_tokens` says how much of the
    base's history comes first: None = all of it (the closed loop), 0 = nothing (the prompt is given in
    full), n = its first n tokens (a history that shrank or was rewritten). `base` is the index of the turn
    whose history that is; None = the turn just before. Other bases are for several prompts interleaved in
    one session.
    """

    append: tuple[Piece, ...]
    gen_tokens: int
    keep_tokens: int | None = None
    base: int | None = None
    gap_s: float = 0.0  # wait before it is sent, after the answer to the turn before

    def __post_init__(self) -> None:
        if self.gen_tokens < 1 or (self.keep_tokens or 0) < 0 or self.gap_s < 0:
            raise ConfigError("a turn generates at least 1 token, keeps and waits at least 0")
        if self.keep_tokens == 0 and not self.append_tokens:
            raise ConfigError("a turn has an empty prompt")

    @property
    def append_tokens(self) -> int:
        """Length of what this turn adds."""
        return total_tokens(self.append)


class Session(msgspec.Struct, frozen=True):
    """An agent: its turns run one after the other. `start_s` counts from the start of the workload."""

    id: str
    turns: tuple[Turn, ...]
    start_s: float = 0.0

    def __post_init__(self) -> None:
        if self.turns and not self.turns[0].append_tokens:
            raise ConfigError(f"session {self.id} begins with an empty prompt")
        for index, turn in enumerate(self.turns):
            if turn.base is not None and not 0 <= turn.base < index:
                raise ConfigError(f"session {self.id}: turn {index} builds on turn {turn.base}, which is not before it")


class History:
    """The closed loop of one session: hands out prompts in order and takes the real outputs.

    Only histories that a later turn builds on are held: usually one, the last.
    """

    def __init__(self, session: Session) -> None:
        self._turns = session.turns
        self._bases = [base_of(session.turns, turn) for turn in range(len(session.turns))]
        self._last_use = {base: turn for turn, base in enumerate(self._bases)}
        self._held: dict[int, TokenArray] = {}
        self._asked: TokenArray | None = None
        self._next = 0

    def prompt(self) -> TokenArray:
        """The prompt of the next turn.

        A kept part that the real outputs left shorter is kept as far as it is there.
        """
        turn, base = self._turns[self._next], self._bases[self._next]
        history = self._held.get(base, np.empty(0, np.uint32))[: turn.keep_tokens]
        self._asked = np.concatenate([history, materialize(turn.append)])
        return self._asked

    def answered(self, output: Sequence[int] | TokenArray) -> None:
        """The model's output to the last prompt; the next turn follows."""
        if self._asked is None:
            raise RuntimeError("answered() before prompt()")
        if self._next in self._last_use:
            self._held[self._next] = np.concatenate([self._asked, np.asarray(output, dtype=np.uint32)])
        base = self._bases[self._next]
        if self._last_use[base] == self._next:
            self._held.pop(base, None)
        self._asked = None
        self._next += 1


def base_of(turns: Sequence[Turn], index: int) -> int:
    """Index of the turn whose history turn `index` builds on; -1 = the empty history."""
    base = turns[index].base
    return index - 1 if base is None else base


def planned_prompts(turns: Sequence[Turn]) -> list[int]:
    """Prompt lengths when every turn generates exactly its `gen_tokens`."""
    prompts: list[int] = []
    for index, turn in enumerate(turns):
        base = base_of(turns, index)
        history = prompts[base] + turns[base].gen_tokens if base >= 0 else 0
        kept = history if turn.keep_tokens is None else min(turn.keep_tokens, history)
        prompts.append(kept + turn.append_tokens)
    return prompts


def planned_pieces(session: Session) -> Iterator[tuple[int, tuple[Piece, ...], Piece]]:
    """For each turn its base, its prompt and an output of the planned length, where no model is at hand."""
    histories: list[tuple[Piece, ...]] = []
    for index, turn in enumerate(session.turns):
        base = base_of(session.turns, index)
        history = histories[base] if base >= 0 else ()
        kept = history if turn.keep_tokens is None else prefix(history, turn.keep_tokens)
        output = Drawn(_OUTPUTS, f"output/{session.id}/{index}", turn.gen_tokens)
        histories.append((*kept, *turn.append, output))
        yield base, (*kept, *turn.append), output
