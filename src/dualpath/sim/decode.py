"""Decode engines: those that step together decode all that they were given, one token a step."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from dualpath.core.ids import EngineId
from dualpath.sim.grant import Grant
from dualpath.sim.kernel import Kernel
from dualpath.sim.node import Cnic, SimNode
from dualpath.sim.physics import StepTimes


@dataclass(slots=True, eq=False)
class DecodeEngine:
    """An engine, its place in its group's lists, and its NIC."""

    engine: EngineId
    node: SimNode
    cnic: Cnic
    group: DecodeGroup
    index: int
    cnic_index: int  # of its node


class DecodeGroup:
    """Engines that wait for each other in every step (EP and DP); a group of one waits for nobody."""

    def __init__(self, kernel: Kernel, times: StepTimes, engines: int, on_finished: Callable[[Grant], None]) -> None:
        self._kernel = kernel
        self._times = times
        self._on_finished = on_finished
        self._requests = [0] * engines
        self._context = [0] * engines  # tokens of KV that a step reads
        self._running = 0
        self._step = 0
        self._stepping = False
        self._joining: list[Grant] = []
        self._fresh: list[Grant] = []  # in their first step
        self._ends: list[tuple[int, int, Grant]] = []  # heap by step
        self.steps = 0
        self.step_requests = 0

    def join(self, grant: Grant) -> None:
        """Its KV is in the engine's memory: it decodes from the next step on."""
        self._joining.append(grant)
        if not self._stepping:
            self._stepping = True
            self._kernel.after(0, self._begin, priority=1)

    def leave(self, grant: Grant) -> None:
        """A grant that ended before its last token."""
        if grant.decoding:
            index = grant.decode.index
            done = self._step - (grant.ends_at_step - (grant.ask.gen_tokens - 1))
            self._requests[index] -= 1
            self._context[index] -= grant.ask.prompt_tokens + 1 + done
            self._running -= 1
            grant.decoding = False

    def _begin(self) -> None:
        for grant in self._joining:
            if grant.ended:
                continue
            grant.decoding = True
            grant.ends_at_step = self._step + grant.ask.gen_tokens - 1
            index = grant.decode.index
            self._requests[index] += 1
            self._context[index] += grant.ask.prompt_tokens + 1
            self._running += 1
            heapq.heappush(self._ends, (grant.ends_at_step, grant.number, grant))
            self._fresh.append(grant)
        self._joining.clear()
        if self._running == 0:
            self._stepping = False
            return
        self.steps += 1
        self.step_requests += self._running
        self._kernel.after(self._times.decode_step_ns(self._requests, self._context), self._end)

    def _end(self) -> None:
        self._step += 1
        self._context = [tokens + more for tokens, more in zip(self._context, self._requests, strict=True)]
        for grant in self._fresh:
            grant.ask.second_ns = self._kernel.now_ns
        self._fresh.clear()
        while self._ends and self._ends[0][0] <= self._step:
            grant = heapq.heappop(self._ends)[2]
            if grant.decoding:
                self.leave(grant)
                self._on_finished(grant)
        self._begin()
