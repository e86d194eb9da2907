"""Prefill engines: batches under the compute quota, layers that move while others are computed (paper sections 2, 5).

Layerwise, an engine holds one layer of a batch: hits stream in and new KV streams out during the pass, which ends when
both the computation and the transfers have. Not layerwise (the paper's Basic), it holds all layers of a request from
its load to its hand-over, and its memory bounds how many it works on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from dualpath.core.ids import EngineId
from dualpath.policy.batch import PrefillChunk, fill_batch
from dualpath.sim.grant import Grant
from dualpath.sim.kernel import Kernel
from dualpath.sim.node import Cnic, SimNode
from dualpath.sim.physics import StepTimes
from dualpath.sim.transfers import Transfers

NO_QUOTA_NS = 10**15


class BatchRules(msgspec.Struct, frozen=True):
    """What bounds a batch. `window_tokens`: of one layer (layerwise), or of all layers."""

    block_tokens: int
    quota_ns: int
    window_tokens: int
    layerwise: bool


@dataclass(slots=True, eq=False)
class PrefillEngine:
    """An engine, its queue, and what it has spent on attention."""

    engine: EngineId
    node: SimNode
    cnic: Cnic
    group: PrefillGroup
    free_tokens: int  # only where requests are held whole
    arrived: deque[Grant] = field(default_factory=deque)  # wait for memory; only where requests are held whole
    ready: deque[Grant] = field(default_factory=deque)
    attention_ns: float = 0.0


class PrefillGroup:
    """Engines that wait for each other in every layer; a group of one waits for nobody."""

    def __init__(
        self, kernel: Kernel, times: StepTimes, rules: BatchRules, transfers: Transfers,
        on_finished: Callable[[Grant], None],
    ) -> None:  # fmt: skip
        self._kernel = kernel
        self._times = times
        self._rules = rules
        self._transfers = transfers
        self._on_finished = on_finished
        self._stepping = False
        self._batch: list[tuple[Grant, PrefillChunk]] = []
        self._moving = 0  # transfers of this pass that have not ended
        self._computed = False
        self._late_ns = 0  # a pass that waited for its last transfer still has to compute with it
        self.engines: list[PrefillEngine] = []
        self.steps = 0

    def queue(self, grant: Grant) -> None:
        """The hit is readable: the request may enter a batch."""
        engine = grant.prefill
        if self._rules.layerwise:
            engine.ready.append(grant)
            self._wake()
        else:
            engine.arrived.append(grant)
            self._admit(engine)

    def forget(self, grant: Grant) -> None:
        """A grant that ended: it is in no later batch."""
        engine = grant.prefill
        if grant in engine.ready:
            engine.ready.remove(grant)
            if not self._rules.layerwise:
                self._give_back(grant)
        elif grant in engine.arrived:
            engine.arrived.remove(grant)

    # all layers held -------------------------------------------------------------------------------------------------

    def _admit(self, engine: PrefillEngine) -> None:
        while engine.arrived and engine.arrived[0].work.total_tokens <= engine.free_tokens:
            grant = engine.arrived.popleft()
            engine.free_tokens -= grant.work.total_tokens
            grant.moving = self._transfers.load(grant, self._loaded, grant) or 1
            if not grant.cached_tokens or self._transfers.free:
                self._loaded(grant)

    def _loaded(self, grant: Grant) -> None:
        grant.moving -= 1
        if grant.moving:
            return
        if grant.ended:
            self._give_back(grant)
            return
        grant.prefill.ready.append(grant)
        self._wake()

    def _handed_over(self, grant: Grant) -> None:
        if not grant.ended:
            self._on_finished(grant)
        self._give_back(grant)

    def _give_back(self, grant: Grant) -> None:
        grant.prefill.free_tokens += grant.work.total_tokens
        self._admit(grant.prefill)

    # passes ----------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._stepping:
            self._stepping = True
            self._kernel.after(0, self._begin, priority=1)

    def _begin(self) -> None:
        attention: list[float] = []
        tokens: list[int] = []
        self._batch = []
        for engine in self.engines:
            if engine.ready:
                self._fill(engine, attention, tokens)
        if not self._batch:
            self._stepping = False
            return
        self.steps += 1
        compute_ns = self._times.prefill_step_ns(attention, tokens)
        self._computed, self._moving = False, 0
        self._late_ns = compute_ns // self._times.layers
        if self._rules.layerwise:
            self._moving = self._transfers.stream(self._batch, compute_ns, self._moved)
        self._kernel.after(compute_ns, self._compute_done)

    def _fill(self, engine: PrefillEngine, attention: list[float], tokens: list[int]) -> None:
        rules = self._rules
        chunks = fill_batch(
            [grant.work for grant in engine.ready], self._times.attention, rules.quota_ns,
            block_tokens=rules.block_tokens, window_tokens=rules.window_tokens,
        )  # fmt: skip
        spent = 0.0
        new = 0
        for chunk in chunks:
            spent += self._times.attention.predict_ns(chunk.cached_tokens, chunk.new_tokens)
            new += chunk.new_tokens
            self._batch.append((engine.ready.popleft(), chunk))
        engine.attention_ns += spent
        attention.append(spent)
        tokens.append(new)

    def _moved(self) -> None:
        self._moving -= 1
        if self._computed and self._moving == 0:
            self._kernel.after(self._late_ns, self._end)

    def _compute_done(self) -> None:
        self._computed = True
        if self._moving == 0:
            self._end()

    def _end(self) -> None:
        batch, self._batch = self._batch, []
        for grant, chunk in reversed(batch):
            if not chunk.last:
                grant.work = msgspec.structs.replace(
                    grant.work, cached_tokens=chunk.cached_tokens + chunk.new_tokens,
                    remaining_tokens=grant.work.remaining_tokens - chunk.new_tokens,
                )  # fmt: skip
                if not grant.ended:
                    grant.prefill.ready.appendleft(grant)
                elif not self._rules.layerwise:
                    self._give_back(grant)
        for grant, chunk in batch:
            if chunk.last:
                self._finish(grant)
        self._begin()

    def _finish(self, grant: Grant) -> None:
        if self._rules.layerwise:
            if not grant.ended:
                self._on_finished(grant)
            return
        if self._transfers.store(grant, self._handed_over, grant) == 0:
            self._handed_over(grant)
