"""The prefill engine: layerwise prefill in batches under the compute quota (paper sections 2 and 5).

It holds one layer's KV of a batch at a time, two while they overlap: the window (node/stream.py). In layer l it waits
for the cached KV, writes the new tokens' KV right behind it, attends over both without a copy, and counts the layer as
computed; the agent moves layer l + 1 in and the new KV of layer l out meanwhile.
"""

import time
from dataclasses import dataclass

import torch

from dualpath.control.outlet import Outlet
from dualpath.core import engine_wire, wire
from dualpath.core.ids import RequestId
from dualpath.core.keys import unpack_tokens
from dualpath.core.rate import RateMeter
from dualpath.core.report import EngineStats, Role
from dualpath.core.request import Tokens
from dualpath.engine.attention import attend_one
from dualpath.engine.generation import StopRule
from dualpath.engine.model import PackedModel
from dualpath.engine.sampling import sample_batch
from dualpath.node.client import AgentClient, BatchAborted, SharedLayers
from dualpath.node.stream import item_bytes
from dualpath.policy.batch import AttentionTime, PrefillChunk, PrefillWork, fill_batch

REPORT_S = 0.5


@dataclass(eq=False, slots=True)
class _Job:
    start: wire.StartPrefill
    tokens: list[int]
    done_tokens: int  # cached, or computed by earlier chunks
    layer_wait_ns: int = 0
    started: bool = False


class PrefillEngine:
    """Runs in one thread; `run` returns only by an exception (ServiceError when the agent is gone)."""

    def __init__(
        self,
        client: AgentClient,
        shared: SharedLayers,
        model: PackedModel,
        outlet: Outlet,
        attention: AttentionTime,
        rate: RateMeter,
        *,
        quota_ns: int,
        window_tokens: int,
    ) -> None:
        assert shared.window is not None
        self._client = client
        self._shared = shared
        self._model = model
        self._attention = attention
        self._rate = rate
        self._compute_rate = RateMeter(0.0)
        self._prompt_tokens = 0  # of finished prompts, cached ones included
        self._busy_ns = 0
        self._quota_ns = quota_ns
        self._layout = model.spec.layout
        self._window_tokens = self._layout.blocks_for(window_tokens) * self._layout.block_tokens
        shape = (2, self._window_tokens, 2, model.spec.kv_heads, model.spec.head_dim)
        self._window = torch.frombuffer(shared.window.view, dtype=torch.float32).view(shape)
        self._jobs: dict[int, _Job] = {}
        self._stops = StopRule(model.spec)
        self._outlet = outlet
        self._next_layer = 0  # sequence number of the next batch's first layer
        self._stats = EngineStats(client.engine, Role.PREFILL, kv_memory_bytes=shared.window.size_bytes)
        self._reported_s = 0.0

    def run(self) -> None:
        """Serve until the agent is gone."""
        while True:
            for message in self._client.receive(0 if self._jobs else REPORT_S):
                self._on(message)
            if self._jobs:
                start_ns = time.monotonic_ns()
                self._step()
                self._busy_ns += time.monotonic_ns() - start_ns
            self._report()

    def _on(self, message: object) -> None:
        if isinstance(message, wire.StartPrefill):
            tokens = unpack_tokens(message.tokens)
            self._jobs[message.grant] = _Job(message, tokens, message.cached_tokens)
        elif isinstance(message, engine_wire.DropGrant):
            self._jobs.pop(message.grant, None)
            self._client.send(engine_wire.GrantDropped(message.grant))

    # one batch ---------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        chunks = self._choose()
        jobs = [self._jobs[int(chunk.request)] for chunk in chunks]
        self._announce(chunks, jobs)
        first = self._next_layer
        self._next_layer += self._layout.n_layers
        try:
            logits = self._forward(first, chunks, jobs)
        except BatchAborted:
            self._shared.control.set_computed(self._next_layer)
            for job in jobs:  # the agent has told the scheduler; their next attempts come under new grants
                self._jobs.pop(job.start.grant, None)
            return
        self._stats.steps += 1
        self._stats.step_requests += len(chunks)
        self._stats.prompt_tokens += sum(chunk.new_tokens for chunk in chunks)
        self._complete(chunks, jobs, logits)

    def _choose(self) -> list[PrefillChunk]:
        queue = [
            PrefillWork(RequestId(str(grant)), job.done_tokens, len(job.tokens) - job.done_tokens)
            for grant, job in self._jobs.items()
        ]
        return fill_batch(
            queue, self._attention, self._quota_ns,
            block_tokens=self._layout.block_tokens, window_tokens=self._window_tokens,
        )  # fmt: skip

    def _announce(self, chunks: list[PrefillChunk], jobs: list[_Job]) -> None:
        items = [self._item(chunk, job.start.grant) for chunk, job in zip(chunks, jobs, strict=True)]
        self._client.send(engine_wire.StreamBatch(self._next_layer, items))
        for job in jobs:
            if not job.started:
                job.started = True
                self._client.send(wire.PrefillStarted(job.start.grant))

    def _item(self, chunk: PrefillChunk, grant: int) -> engine_wire.StreamItem:
        cached_blocks = chunk.cached_tokens // self._layout.block_tokens
        return engine_wire.StreamItem(grant, 0, cached_blocks, chunk.cached_tokens, chunk.new_tokens)

    def _forward(self, first: int, chunks: list[PrefillChunk], jobs: list[_Job]) -> torch.Tensor:
        """One pass; logits of the last new token of every chunk that ends its prompt."""
        tokens: list[int] = []
        positions: list[int] = []
        logits_at: list[int] = []
        for chunk, job in zip(chunks, jobs, strict=True):
            stop = chunk.cached_tokens + chunk.new_tokens
            tokens += job.tokens[chunk.cached_tokens : stop]
            positions += range(chunk.cached_tokens, stop)
            if chunk.last:
                logits_at.append(len(tokens) - 1)
        places = self._places(chunks)
        waited_ns = 0

        def attend(
            layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
        ) -> torch.Tensor:
            nonlocal waited_ns
            s = first + layer
            waited_ns += self._shared.wait_filled(s, first)
            half = self._window[s % 2]
            out, row = [], 0
            for chunk, place in zip(chunks, places, strict=True):
                rows = slice(row, row + chunk.new_tokens)
                kv = half[place : place + chunk.cached_tokens + chunk.new_tokens]
                kv[chunk.cached_tokens :, 0] = k[rows]
                kv[chunk.cached_tokens :, 1] = v[rows]
                out.append(attend_one(q[rows], kv.to(q.device), scaling=scaling, window=window))
                row = rows.stop
            self._shared.control.set_computed(s + 1)
            return torch.cat(out)

        logits = self._model.forward(tokens, positions, attend, logits_at)
        self._stats.layer_wait_ns += waited_ns
        for job in jobs:
            job.layer_wait_ns += waited_ns
        return logits

    def _places(self, chunks: list[PrefillChunk]) -> list[int]:
        """First window token of each chunk; the agent computes the same (LayerStream)."""
        places, start = [], 0
        for chunk in chunks:
            places.append(start // self._layout.token_bytes)
            start += item_bytes(self._layout, self._item(chunk, 0))
        return places

    def _complete(self, chunks: list[PrefillChunk], jobs: list[_Job], logits: torch.Tensor) -> None:
        last = [job for chunk, job in zip(chunks, jobs, strict=True) if chunk.last]
        for chunk, job in zip(chunks, jobs, strict=True):
            job.done_tokens += chunk.new_tokens
        sampled = sample_batch(logits, [j.start.sampling for j in last], [len(j.tokens) for j in last]) if last else []
        for job, (token, gap) in zip(last, sampled, strict=True):
            start = job.start
            reason = self._stops.ending(start.sampling, start.max_tokens).push(token)
            self._outlet.send(start.reply_to, Tokens(start.request, 0, [token], [gap]))
            self._stats.generated_tokens += 1
            self._prompt_tokens += len(job.tokens)
            self._client.send(wire.PrefillFinished(start.grant, token, job.layer_wait_ns, reason))
            del self._jobs[start.grant]

    # reports -----------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        if time.monotonic() - self._reported_s >= REPORT_S:
            self._reported_s = time.monotonic()
            self._rate.update(self._prompt_tokens, self._busy_ns)
            self._stats.process_tokens_per_s = self._rate.per_s
            self._compute_rate.update(self._stats.prompt_tokens, self._busy_ns)
            self._stats.compute_tokens_per_s = self._compute_rate.per_s
            self._client.send(engine_wire.EngineReport(self._stats))
