"""What one request asks for on average: given as numbers, or taken from a preset or a trace."""

from pathlib import Path

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.workload import PRESETS, read_workload, workload_statistics

_VOCABULARY = 2**17  # of traces, whose contents do not matter here
_SESSIONS = 200  # enough for means, also of long traces


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """Mean tokens of a request, and requests of an agent. ConfigError for lengths that no request has."""

    context_tokens: float  # the prompt, cached tokens included
    new_tokens: float  # of it what no earlier request held, or only in part of a block
    gen_tokens: float
    turns: float

    def __post_init__(self) -> None:
        if not 0 < self.new_tokens <= self.context_tokens or self.gen_tokens < 1 or self.turns < 1:
            raise ConfigError(
                f"a request of {self.context_tokens:g} tokens, {self.new_tokens:g} of them new, that generates "
                f"{self.gen_tokens:g}, {self.turns:g} of them an agent: give positive numbers, and at most as many new "
                "tokens as the prompt has"
            )

    @property
    def hit_tokens(self) -> float:
        """Cached tokens of the prompt: what has to be read."""
        return self.context_tokens - self.new_tokens

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that are cached."""
        return self.hit_tokens / self.context_tokens


def work_of_numbers(context: float, append: float, gen: float, turns: float, block_tokens: int) -> Work:
    """Agents whose prompts grow by append + gen each turn, with `context` as their mean.

    Only whole blocks hit, which costs half a block a request; an agent's first prompt hits nothing.
    """
    if min(context, append) <= 0 or append > context or turns < 1:
        raise ConfigError(
            f"--context {context:g} --append {append:g} --turns {turns:g}: a prompt has a positive number of tokens, "
            "at most all of them appended, and an agent has at least one turn"
        )
    first = max(append, context - (turns - 1) / 2 * (append + gen))
    later = min(context, append + (block_tokens - 1) / 2)
    new = min(context, (first + (turns - 1) * later) / turns)
    return Work(context_tokens=context, new_tokens=new, gen_tokens=gen, turns=turns)


def work_of_workload(name: str, block_tokens: int) -> Work:
    """A preset's, or that of a trace file's first 200 sessions with ideal hits; ConfigError when it is neither."""
    if name in PRESETS:
        preset = PRESETS[name]
        return work_of_numbers(
            preset.context_tokens, preset.mean_append_tokens, preset.gen_tokens, preset.turns, block_tokens
        )
    file = Path(name).expanduser()
    if not file.is_file():
        raise ConfigError(f"no workload {name!r}: neither a file nor one of {', '.join(sorted(PRESETS))}")
    sessions = read_workload(file, vocab=_VOCABULARY, limit_sessions=_SESSIONS)
    found = workload_statistics(sessions, block_tokens=block_tokens)
    if not found.requests:
        raise ConfigError(f"{name} has no requests")
    return Work(
        context_tokens=found.context_tokens, new_tokens=found.context_tokens * (1 - found.hit_blocks),
        gen_tokens=max(1.0, found.gen_tokens), turns=found.turns,
    )  # fmt: skip
