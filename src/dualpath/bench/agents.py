"""Agents in closed loop: the next turn contains the model's real output."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from dualpath.bench.client import Answer
from dualpath.core.errors import ServiceError
from dualpath.core.request import Timeline
from dualpath.workload import History, Session

WATCH_S = 0.5

Ask = Callable[[list[int], int], Awaitable[Answer]]
"""Prompt and number of tokens to generate, greedily -> the answer; ServiceError."""


class TurnRecord(msgspec.Struct):
    """One answered turn; `ended_s` counts from the start of the clock."""

    agent: int
    turn: int
    prompt_tokens: int
    cached_tokens: int
    tokens: list[int]
    gaps: list[float]
    ttft_s: float
    ttst_s: float | None  # first until second token
    tpot_s: float | None  # mean over the later gaps
    ended_s: float
    timeline: Timeline = msgspec.field(default_factory=Timeline)  # as the scheduler saw it


class Replayed(msgspec.Struct):
    """What all agents saw; turns in order of (agent, turn)."""

    jct_s: float  # start of the clock until the last token of the last agent
    agent_s: list[float]  # each agent's own: its start until its last token
    turns: list[TurnRecord]
    errors: list[str]


def run_agents(
    ask: Ask, sessions: Sequence[Session], starts_s: Sequence[float], *, think: bool,
    on_turn: Callable[[], None], check: Callable[[], None],
) -> Replayed:  # fmt: skip
    """Run all sessions to their ends; an agent whose request fails stops there.

    `check` is called again and again; what it raises ends the run.
    """
    return asyncio.run(_run(ask, sessions, starts_s, think, on_turn, check))


async def _run(
    ask: Ask, sessions: Sequence[Session], starts_s: Sequence[float], think: bool,
    on_turn: Callable[[], None], check: Callable[[], None],
) -> Replayed:  # fmt: skip
    clock_s = time.monotonic()
    agents = [
        _Agent(index, session, clock_s + start_s, clock_s)
        for index, (session, start_s) in enumerate(zip(sessions, starts_s, strict=True))
    ]
    work = asyncio.create_task(_all(agent.run(ask, think, on_turn) for agent in agents))
    watch = asyncio.create_task(_watch(check))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        await (work if work.done() else watch)
    finally:
        work.cancel()
        watch.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)
    turns = [turn for agent in agents for turn in agent.turns]
    return Replayed(
        jct_s=max((turn.ended_s for turn in turns), default=0.0),
        agent_s=[agent.turns[-1].ended_s - (agent.start_s - clock_s) for agent in agents if agent.turns],
        turns=turns,
        errors=[agent.error for agent in agents if agent.error],
    )


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*works)


async def _watch(check: Callable[[], None]) -> None:
    while True:
        check()
        await asyncio.sleep(WATCH_S)


class _Agent:
    def __init__(self, index: int, session: Session, start_s: float, clock_s: float) -> None:
        self.start_s = start_s
        self.turns: list[TurnRecord] = []
        self.error = ""
        self._index = index
        self._session = session
        self._clock_s = clock_s

    async def run(self, ask: Ask, think: bool, on_turn: Callable[[], None]) -> None:
        history = History(self._session)
        await asyncio.sleep(self.start_s - time.monotonic())
        for number, turn in enumerate(self._session.turns):
            if think and turn.gap_s:
                await asyncio.sleep(turn.gap_s)
            prompt = history.prompt().tolist()
            try:
                answer = await ask(prompt, turn.gen_tokens)
            except ServiceError as error:
                self.error = f"agent {self._index}, turn {number}: {error}"
                return
            history.answered(answer.tokens)
            self.turns.append(self._record(number, len(prompt), answer))
            on_turn()

    def _record(self, number: int, prompt_tokens: int, answer: Answer) -> TurnRecord:
        times_s = answer.times_s
        count = len(times_s)
        return TurnRecord(
            agent=self._index,
            turn=number,
            prompt_tokens=prompt_tokens,
            cached_tokens=answer.cached_tokens,
            tokens=answer.tokens,
            gaps=answer.gaps,
            ttft_s=times_s[0] - answer.sent_s,
            ttst_s=times_s[1] - times_s[0] if count > 1 else None,
            tpot_s=(times_s[-1] - times_s[1]) / (count - 2) if count > 2 else None,
            ended_s=times_s[-1] - self._clock_s,
            timeline=answer.timeline,
        )
