"""Agents: closed loop, times, and what a failure leaves."""

import time
from typing import Any

import pytest

from dualpath.bench.agents import Replayed, run_agents
from dualpath.bench.client import Answer
from dualpath.core.errors import ConfigError, ServiceError
from dualpath.workload import Drawn, Session, Turn, Vocabulary

WORDS = Vocabulary(500, seed=1)


def session(name: str, turns: int, *, gap_s: float = 0.0) -> Session:
    return Session(name, tuple(Turn((Drawn(WORDS, f"{name}/{i}", 5),), 3, gap_s=gap_s) for i in range(turns)))


class Model:
    """Answers with the prompt's length, at fixed times after it was asked; fails for prompts of `fail_at` tokens."""

    def __init__(self, fail_at: int = 0) -> None:
        self.prompts: list[list[int]] = []
        self.fail_at = fail_at

    async def complete(self, prompt: list[int], max_tokens: int) -> Answer:
        self.prompts.append(prompt)
        if len(prompt) == self.fail_at:
            raise ServiceError("lost")
        now_s = time.monotonic()
        times_s = [now_s + s for s in (0.25, 0.75, 0.875)][:max_tokens]
        return Answer(now_s, [len(prompt)] * max_tokens, [0.5] * max_tokens, times_s, len(prompt) - 1)


def run(model: Model, sessions: list[Session], **options: Any) -> Replayed:
    given: dict[str, Any] = {"think": False, "on_turn": lambda: None, "check": lambda: None, **options}
    return run_agents(model.complete, sessions, options.pop("starts_s", [0.0] * len(sessions)), **given)


def test_the_next_turn_holds_the_real_output() -> None:
    model, counted = Model(), []
    one = session("a", 3)
    replayed = run(model, [one], on_turn=lambda: counted.append(1))
    texts = [turn.append[0].ids().tolist() for turn in one.turns]
    assert model.prompts[1] == [*texts[0], 5, 5, 5, *texts[1]]
    assert model.prompts[2] == [*model.prompts[1], 13, 13, 13, *texts[2]]
    assert [(t.turn, t.prompt_tokens, t.cached_tokens) for t in replayed.turns] == [(0, 5, 4), (1, 13, 12), (2, 21, 20)]
    assert len(counted) == 3 and not replayed.errors


def test_times() -> None:
    replayed = run(Model(), [session("a", 1), session("b", 2)])
    for turn in replayed.turns:
        assert (turn.ttft_s, turn.ttst_s, turn.tpot_s) == pytest.approx((0.25, 0.5, 0.125))
    assert [(t.agent, t.turn) for t in replayed.turns] == [(0, 0), (1, 0), (1, 1)]
    assert replayed.jct_s == max(t.ended_s for t in replayed.turns)
    assert len(replayed.agent_s) == 2


def test_starts_and_gaps_are_waited_for() -> None:
    sessions = [session("a", 2, gap_s=0.2), session("b", 1)]
    nothing: Any = lambda: None  # noqa: E731
    replayed = run_agents(Model().complete, sessions, [0.0, 0.1], think=True, on_turn=nothing, check=nothing)
    a0, a1, b0 = (turn.ended_s - 0.875 for turn in replayed.turns)
    assert 0.2 <= a0 <= a1 - 0.2
    assert 0.1 <= b0 < 0.2
    assert replayed.agent_s[1] == pytest.approx(0.875, abs=0.08)
    offline = run_agents(Model().complete, sessions, [0.0, 0.0], think=False, on_turn=nothing, check=nothing)
    assert max(turn.ended_s for turn in offline.turns) < 0.875 + 0.2


def test_a_failed_agent_stops_and_the_others_go_on() -> None:
    model = Model(fail_at=13)
    short = Session("b", (Turn((Drawn(WORDS, "b", 6),), 3), Turn((Drawn(WORDS, "c", 6),), 3)))
    replayed = run(model, [session("a", 3), short])
    assert replayed.errors == ["agent 0, turn 1: lost"]
    assert [(t.agent, t.turn) for t in replayed.turns] == [(0, 0), (1, 0), (1, 1)]


def test_a_broken_cluster_ends_the_run() -> None:
    def check() -> None:
        raise ConfigError("refused")

    begin_s = time.monotonic()
    with pytest.raises(ConfigError, match="refused"):
        run(Model(), [session("a", 2, gap_s=30)], think=True, check=check)
    assert time.monotonic() - begin_s < 5
