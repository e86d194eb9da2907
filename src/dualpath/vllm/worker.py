"""The connector at a vLLM worker: copies pages between its KV cache and the memory shared with the agent."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from dualpath.core.errors import DualPathError, ServiceError
from dualpath.node.client import BatchAborted, SharedLayers
from dualpath.vllm.shard import KvShard
from dualpath.vllm.step import Pairs, Session, StepDone, StepMetadata

log = logging.getLogger("dualpath.vllm")


class Worker:
    """One rank of `ranks`. A stored block is [layers][ranks][parts][page]; a window's half has one layer of many."""

    def __init__(self, path: Path, shard: KvShard, rank: int, ranks: int, parts: int) -> None:
        self._path = path
        self._shard = shard
        self._rank = rank
        self._shape = (ranks, parts, shard.shape.page_bytes)
        self._layers = shard.shape.layers
        self._session: Session | None = None
        self._shared: SharedLayers | None = None
        self._arena = torch.empty(0)
        self._window = torch.empty(0)
        self._loader = ThreadPoolExecutor(1, "dualpath-load")
        self._loads: dict[str, Future[None]] = {}
        self._plan: StepMetadata | None = None
        self._aborted = False
        self._lost: set[int] = set()
        self._saved: set[int] = set()
        self._sent: set[str] = set()
        self._wait_ns = 0
        self._layer_waits_ns = [0] * self._layers  # since they were taken

    # one step ----------------------------------------------------------------------------------------------------

    def begin(self, plan: StepMetadata) -> None:
        """A step begins."""
        self._plan = plan
        self._aborted = False
        if not plan.idle:
            self._settle(plan.session)
            self._lost.update(plan.lost)

    def _settle(self, session: Session | None) -> None:
        """Map the memory of the agent that planned this step."""
        if session is None or (self._session and session.number == self._session.number):
            return
        for load in list(self._loads.values()):
            load.exception()  # of the agent before
        try:
            shared = SharedLayers(self._path, session.engine, self._rank)
        except DualPathError as error:
            log.error("cannot map the agent's memory: %s", error)
            self._session = self._shared = None
            return
        self._session, self._shared = session, shared
        arena = torch.frombuffer(shared.arena.view, dtype=torch.uint8)
        slot = self._layers * self._shape[0] * self._shape[1] * self._shape[2]
        self._arena = arena[: arena.numel() // slot * slot].view(-1, self._layers, *self._shape)
        if shared.window:
            self._window = torch.frombuffer(shared.window.view, dtype=torch.uint8).view(2, -1, *self._shape)

    def load(self) -> None:
        """Start what comes from the arena, beside the steps."""
        assert self._plan is not None
        for request, pairs in self._plan.loads.items():
            self._loads[request] = self._loader.submit(self._load, pairs)

    def _load(self, pairs: Pairs) -> None:
        if not len(pairs):
            return
        if self._shared is None:
            self._lost.update(pairs.blocks)
            return
        for layer in range(self._layers):
            self._shard.load(layer, self._arena[:, layer, self._rank], pairs)

    def before_layer(self, name: str) -> None:
        """Bring this layer's cached KV into the cache; waits until it has come."""
        assert self._plan is not None
        stream, layer = self._plan.stream, self._shard.layer_of.get(name)
        if stream is None or layer is None or self._aborted:
            return
        if self._shared is None:
            self._abort("the agent is gone")
            return
        sequence = stream.first_layer + layer
        try:
            waited_ns = self._shared.wait_filled(sequence, stream.first_layer)
        except BatchAborted:
            self._abort("its transfer failed")
        except ServiceError as error:
            self._abort(str(error))
        else:
            self._wait_ns += waited_ns
            self._layer_waits_ns[layer] += waited_ns
            self._shard.load(layer, self._half(sequence), stream.fill)

    def after_layer(self, name: str) -> None:
        """Hand this layer's new KV over."""
        assert self._plan is not None
        stream, layer = self._plan.stream, self._shard.layer_of.get(name)
        if stream is None or layer is None or self._aborted or self._shared is None:
            return
        sequence = stream.first_layer + layer
        self._shard.save(layer, self._half(sequence), stream.push)
        self._shared.control.set_computed(sequence + 1)

    def _half(self, sequence: int) -> torch.Tensor:
        return self._window[sequence % 2][:, self._rank]

    def _abort(self, why: str) -> None:
        """The rest of the step computes with what there is; vLLM hears which blocks are not to be trusted."""
        assert self._plan and self._plan.stream
        log.warning("a batch is lost, vLLM computes it again: %s", why)
        self._aborted = True
        self._lost.update(self._plan.stream.fill.blocks)

    def end(self) -> None:
        """A step ends: all its layers have gone through; save complete blocks."""
        plan = self._plan
        assert plan is not None
        if plan.stream and self._shared:
            last = plan.stream.first_layer + self._layers
            if not self._aborted and self._shared.control.computed != last:
                raise ServiceError(
                    "vLLM ran a step without calling the connector for every layer: full CUDA graphs? "
                    "Start it with --enforce-eager or piecewise graphs"
                )
            self._shared.control.set_computed(last)
        if plan.saves.blocks and self._shared:
            for layer in range(self._layers):
                self._shard.save(layer, self._arena[:, layer, self._rank], plan.saves)
        if plan.saves.blocks:
            self._saved.add(plan.number)
        self._sent.update(plan.finals)

    # what vLLM takes ---------------------------------------------------------------------------------------------

    def take_ended(self) -> tuple[set[str], set[str]]:
        """Requests whose last blocks are saved, and whose loads have ended."""
        sent, self._sent = self._sent, set()
        loaded = {name for name, load in self._loads.items() if load.done()}
        for name in loaded:
            if error := self._loads.pop(name).exception():
                raise error
        return sent, loaded

    def take_lost(self) -> set[int]:
        """Blocks that vLLM must not trust."""
        lost, self._lost = self._lost, set()
        return lost

    def take_done(self) -> StepDone | None:
        """Steps whose saves are in the arena."""
        if not (self._saved or self._wait_ns):
            return None
        done = StepDone(self._saved, self._wait_ns)
        self._saved, self._wait_ns = set(), 0
        return done

    def take_counts(self) -> dict[str, float]:
        """For vLLM's metrics, since the last call; one rank speaks for all."""
        waits, self._layer_waits_ns = self._layer_waits_ns, [0] * self._layers
        if self._rank:
            return {}
        return {f"layer_wait_seconds/{layer}": ns / 1e9 for layer, ns in enumerate(waits) if ns}

    def close(self) -> None:
        """Let go of the memory."""
        self._loader.shutdown()
        self._arena = self._window = torch.empty(0)
        if self._shared:
            self._shared.close()
