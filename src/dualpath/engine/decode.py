"""The decode engine: continuous batching; requests join and leave at every step.

A request joins when its prompt's KV is complete in the node's arena: it is copied into a KV cache of its own (the
paper's copy from the DE buffer to HBM). Every full block that generation completes is copied back into the request's
arena slot and handed to the agent for write-back.
"""

import time
from dataclasses import dataclass

import torch

from dualpath.control.outlet import Outlet
from dualpath.core import engine_wire, wire
from dualpath.core.keys import BlockKey, child_key, pack_tokens, unpack_tokens
from dualpath.core.report import EngineStats, Role
from dualpath.core.request import FinishReason, Tokens
from dualpath.engine.attention import attend_one
from dualpath.engine.generation import Ending, StopRule
from dualpath.engine.model import PackedModel
from dualpath.engine.sampling import sample_batch
from dualpath.node.client import AgentClient, SharedLayers

REPORT_S = 0.5


@dataclass(eq=False, slots=True)
class _Running:
    start: wire.StartDecode
    tokens: list[int]  # prompt and generated; the last one has no KV yet
    kv: torch.Tensor  # [layers, capacity, 2, kv_heads, head_dim]
    ending: Ending
    parent: BlockKey  # key of the last full block of `tokens` that has one
    keyed_blocks: int

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV is in the cache."""
        return len(self.tokens) - 1


class DecodeEngine:
    """Runs in one thread; `run` returns only by an exception (ServiceError when the agent is gone).

    Its KV memory cannot overflow: the scheduler places a request only where its whole length still fits.
    """

    def __init__(self, client: AgentClient, shared: SharedLayers, model: PackedModel, outlet: Outlet) -> None:
        self._client = client
        self._model = model
        self._layout = model.spec.layout
        layout, spec = self._layout, model.spec
        per_slot = (layout.n_layers, layout.block_tokens, 2, spec.kv_heads, spec.head_dim)
        self._arena = torch.frombuffer(shared.arena.view, dtype=torch.float32).view(-1, *per_slot)
        self._running: dict[int, _Running] = {}
        self._stops = StopRule(spec)
        self._outlet = outlet
        self._stats = EngineStats(client.engine, Role.DECODE)
        self._reported_s = 0.0

    def run(self) -> None:
        """Serve until the agent is gone."""
        while True:
            for message in self._client.receive(0 if self._running else REPORT_S):
                self._on(message)
            if self._running:
                self._step()
            self._report()

    def _on(self, message: object) -> None:
        if isinstance(message, wire.StartDecode):
            self._running[message.grant] = self._join(message)
            self._client.send(wire.DecodeStarted(message.grant))
        elif isinstance(message, engine_wire.DropGrant):
            self._running.pop(message.grant, None)
            self._client.send(engine_wire.GrantDropped(message.grant))

    def _join(self, start: wire.StartDecode) -> _Running:
        prompt = unpack_tokens(start.tokens)
        spec, size = self._model.spec, self._layout.block_tokens
        shape = (spec.layout.n_layers, len(prompt) + start.max_tokens, 2, spec.kv_heads, spec.head_dim)
        kv = torch.empty(shape, device=self._model.device)
        for first in range(0, len(prompt), size):
            count = min(size, len(prompt) - first)
            kv[:, first : first + count] = self._arena[start.slots[first // size], :, :count]
        ending = self._stops.ending(start.sampling, start.max_tokens)
        ending.push(start.first_token)
        full = self._layout.full_blocks(len(prompt))
        return _Running(start, [*prompt, start.first_token], kv, ending, start.parent_key, full)

    # one step ----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        batch = list(self._running.values())
        logits = self._forward(batch)
        sampled = sample_batch(logits, [r.start.sampling for r in batch], [len(r.tokens) for r in batch])
        self._stats.steps += 1
        self._stats.step_requests += len(batch)
        self._stats.generated_tokens += len(batch)
        for running, (token, gap) in zip(batch, sampled, strict=True):
            self._advance(running, token, gap)

    def _forward(self, batch: list[_Running]) -> torch.Tensor:
        def attend(
            layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, window: int | None
        ) -> torch.Tensor:
            out = []
            for row, running in enumerate(batch):
                cache, position = running.kv[layer], running.kv_tokens
                cache[position, 0] = k[row]
                cache[position, 1] = v[row]
                out.append(attend_one(q[row : row + 1], cache[: position + 1], scaling=scaling, window=window))
            return torch.cat(out)

        tokens = [running.tokens[-1] for running in batch]
        positions = [running.kv_tokens for running in batch]
        return self._model.forward(tokens, positions, attend, range(len(batch)))

    def _advance(self, running: _Running, token: int, gap: float) -> None:
        start = running.start
        running.tokens.append(token)
        self._persist(running)
        self._outlet.send(start.reply_to, Tokens(start.request, running.ending.count, [token], [gap]))
        reason = running.ending.push(token)
        if reason is not None:
            self._finish(running, reason)

    def _finish(self, running: _Running, reason: FinishReason) -> None:
        del self._running[running.start.grant]
        self._client.send(wire.DecodeFinished(running.start.grant, reason, running.ending.count))

    def _persist(self, running: _Running) -> None:
        """Hand a block that this step completed to the agent."""
        size, block = self._layout.block_tokens, running.keyed_blocks
        if running.kv_tokens < (block + 1) * size:
            return
        first, slot = block * size, running.start.slots[block]
        self._arena[slot] = running.kv[:, first : first + size]
        key = child_key(running.parent, pack_tokens(running.tokens[first : first + size]))
        self._client.send(engine_wire.BlockFilled(running.start.grant, slot, key, running.parent if block else b""))
        running.parent, running.keyed_blocks = key, block + 1

    def _report(self) -> None:
        if time.monotonic() - self._reported_s >= REPORT_S:
            self._reported_s = time.monotonic()
            self._stats.kv_memory_bytes = sum(r.kv.nbytes for r in self._running.values())
            self._client.send(engine_wire.EngineReport(self._stats))
