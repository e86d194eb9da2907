"""The sessions that an experiment's agents live through."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from dualpath.bench.experiment import Experiment
from dualpath.core.errors import ConfigError
from dualpath.core.model import ModelSpec
from dualpath.workload import (
    PRESETS,
    Session,
    cut,
    first_turns,
    generate,
    planned_prompts,
    poisson_starts,
    read_workload,
    shrink,
)


def load_sessions(experiment: Experiment, spec: ModelSpec) -> list[Session]:
    """One session an agent, shortened as asked, none longer than the model's context; ConfigError."""
    limit = min(experiment.max_context or spec.max_context_tokens, spec.max_context_tokens)
    sessions = [_shortened(session, experiment, limit) for session in _whole(experiment, spec)]
    if len(sessions) < experiment.agents:
        raise ConfigError(f"{experiment.workload} has {len(sessions)} sessions; lower --agents to that")
    empty = [session.id for session in sessions if not session.turns]
    if empty:
        raise ConfigError(
            f"the first turn of {len(empty)} of {len(sessions)} sessions ({empty[0]}, ...) needs more than {limit} "
            "tokens; raise --max-context or --shrink"
        )
    return sessions


def longest_request(sessions: Sequence[Session]) -> int:
    """Tokens of the longest prompt with its generation."""
    return max(
        prompt + turn.gen_tokens
        for session in sessions
        for prompt, turn in zip(planned_prompts(session.turns), session.turns, strict=True)
    )


def start_times(experiment: Experiment) -> list[float]:
    """When each agent starts, in seconds after the clock."""
    if experiment.aps is None:
        return [0.0] * experiment.agents
    return poisson_starts(experiment.agents, experiment.aps, experiment.seed)


def _whole(experiment: Experiment, spec: ModelSpec) -> list[Session]:
    if experiment.workload in PRESETS:
        return generate(experiment.workload, experiment.agents, vocab=spec.vocab_size, seed=experiment.seed)
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(spec.path) / "tokenizer.json"))
    return read_workload(
        Path(experiment.workload).expanduser(), vocab=spec.vocab_size, seed=experiment.seed,
        limit_sessions=experiment.agents,
        tokenize=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    )  # fmt: skip


def _shortened(session: Session, experiment: Experiment, limit: int) -> Session:
    if experiment.turns is not None:
        session = first_turns(session, experiment.turns)
    return cut(shrink(session, experiment.shrink), max_context=limit)
