"""Generated agents with the lengths of the paper's sets (paper section 6, table of MaxLen 32K, 48K, 64K)."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from dualpath.core.errors import ConfigError
from dualpath.workload.content import Drawn, Piece, Vocabulary
from dualpath.workload.model import Session, Turn

_SPREAD = 0.5  # lengths are uniform over mean * [1 - spread, 1 + spread]


class Preset(msgspec.Struct, frozen=True):
    """Mean lengths of an agent: a row of the table and what follows from it.

    The table's columns do not multiply out: turns * (append + gen) is more than total. Without
    `append_given` the append is what brings the history to `total`; with it, the table's append counts and
    the total follows.
    """

    turns: int
    append_tokens: int
    gen_tokens: int
    total_tokens: int
    context_tokens: int
    append_given: bool = False

    @property
    def first_prompt_tokens(self) -> int:
        """Prompt of turn 1: prompts grow evenly from here to `total`, so their mean is `context`."""
        return 2 * self.context_tokens - self.total_tokens

    @property
    def mean_append_tokens(self) -> float:
        """Append of the later turns."""
        if self.append_given:
            return self.append_tokens
        grown = self.total_tokens - self.first_prompt_tokens - self.turns * self.gen_tokens
        return grown / (self.turns - 1)


_TABLE = {
    "paper-32k": Preset(60, 608, 148, 28_639, 17_183),
    "paper-48k": Preset(106, 474, 172, 42_607, 25_120),
    "paper-64k": Preset(157, 429, 176, 55_958, 32_721),
}
PRESETS = _TABLE | {
    f"{name}-append": msgspec.structs.replace(row, append_given=True) for name, row in _TABLE.items()
}  # fmt: skip


def generate(
    preset: str, agents: int, *, vocab: int, seed: int = 0, low: int = 32, shared_prompt_tokens: int = 0
) -> list[Session]:
    """`agents` sessions of a preset, all starting at 0; lengths and contents depend on (seed, agent, turn)
    alone.

    `shared_prompt_tokens` of every first prompt are the same in all agents (a system prompt).
    """
    row = preset_named(preset)
    if agents < 1 or not 0 <= shared_prompt_tokens < row.first_prompt_tokens * _SPREAD:
        raise ConfigError("give at least 1 agent, and a shared prompt of less than half the preset's first prompt")
    vocabulary = Vocabulary(vocab, low, seed)
    return [_agent(row, index, vocabulary, shared_prompt_tokens) for index in range(agents)]


def preset_named(name: str) -> Preset:
    """ConfigError, with the names that there are, for another."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def drawn_lengths(
    preset: Preset, index: int, seed: int, append_factor: float = 1.0, gen_factor: float = 1.0
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Appends (the first is the first prompt, which no factor scales) and generations of an agent's turns."""
    # Lengths come from a stream of 32-bit integers of their own: they do not depend on the vocabulary.
    lengths = Vocabulary(2**32, 0, seed).draw(f"lengths/{index}", 0, 2 * preset.turns)
    factors = 1 - _SPREAD + 2 * _SPREAD * lengths / 2.0**32
    means = np.full(preset.turns, preset.mean_append_tokens * append_factor)
    means[0] = preset.first_prompt_tokens
    appends, gens = means * factors[::2], preset.gen_tokens * gen_factor * factors[1::2]
    return np.rint(appends).clip(min=1).astype(np.int32), np.rint(gens).clip(min=1).astype(np.int32)


def _agent(preset: Preset, index: int, vocabulary: Vocabulary, shared_tokens: int) -> Session:
    appends, gens = drawn_lengths(preset, index, vocabulary.seed)
    turns: list[Turn] = []
    for turn, (added, generated) in enumerate(zip(appends.tolist(), gens.tolist(), strict=True)):
        append: tuple[Piece, ...] = (Drawn(vocabulary, f"append/{index}/{turn}", added),)
        if turn == 0 and shared_tokens:
            own = Drawn(vocabulary, f"append/{index}/{turn}", added - shared_tokens)
            append = (Drawn(vocabulary, "shared", shared_tokens), own)
        turns.append(Turn(append, generated))
    return Session(f"agent-{index}", tuple(turns))
