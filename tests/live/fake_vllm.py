"""A stand-in for a vLLM server: its scheduler's habits and a KV cache in an order of its own, without a model.

Drives the connector's real planner, link and workers as vLLM 0.32 does, step by step, and checks every layer's KV
before it "attends". It preempts, chunks and hits its own cache at random.
"""

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dualpath.core import engine_wire, wire
from dualpath.core.ids import EngineId
from dualpath.core.model import ModelSpec
from dualpath.core.request import Ready
from dualpath.vllm.job import Grid
from dualpath.vllm.link import AgentLink
from dualpath.vllm.planner import Planner
from dualpath.vllm.shard import KvShard
from dualpath.vllm.worker import Worker


def kv_byte(token: int, position: int, layer: int, rank: int) -> int:
    return (token * 31 + position * 7 + layer * 101 + rank * 53) % 251 + 1


@dataclass(eq=False)
class FakeRequest:
    """The fields of vLLM's Request that the connector reads."""

    request_id: str
    prompt: list[int]
    max_tokens: int
    kv_transfer_params: dict[str, Any]
    output: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    blocks: list[int] = field(default_factory=list)
    state: str = "waiting"

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def all_token_ids(self) -> list[int]:
        return self.prompt + self.output

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def num_output_tokens(self) -> int:
        return len(self.output)


class FakeVllm(threading.Thread):
    """One server: steps while it has requests; the gateway's part, calling when invited, is played here too."""

    def __init__(
        self, path: Path, spec: ModelSpec, seed: int, *, vllm_tokens: int, ranks: int, blocks: int = 64
    ) -> None:
        super().__init__(daemon=True)
        layout = spec.layout
        self.rng, self.seed = random.Random(seed), seed
        self.layers, self.ranks = layout.n_layers, ranks
        self.grid = Grid(layout.block_tokens, vllm_tokens)
        self.page = layout.layer_block_bytes // ranks // self.grid.parts
        self.path, self.free = path, list(range(blocks))
        names = [f"model.layers.{layer}.attn" for layer in range(self.layers)]
        self.caches = [
            {name: torch.zeros(blocks, self.page, dtype=torch.uint8) for name in names} for _ in range(ranks)
        ]
        self.workers = [
            Worker(path, KvShard(cache, blocks), rank, ranks, self.grid.parts) for rank, cache in enumerate(self.caches)
        ]
        self.pool = ThreadPoolExecutor(ranks)
        self.requests: list[FakeRequest] = []
        self.ending: dict[str, FakeRequest] = {}
        self.local: list[tuple[list[int], list[int]]] = []  # tokens whose KV vLLM's own cache has, and their blocks
        self.lock, self.work, self.left = threading.Lock(), threading.Event(), threading.Event()
        self.faults: list[str] = []
        self.names = itertools.count()
        self.preemptions = self.recomputed = self.loaded = 0
        hello = engine_wire.EngineHello(
            wire.PROTOCOL_VERSION, EngineId(""), None, spec, 1000, 256, 1000.0, ranks, "http://nowhere"
        )
        self.link = AgentLink(path, hello)
        self.link._await_server = lambda client: client.send(engine_wire.EngineServes())  # type: ignore[method-assign]
        self.planner: Planner

        def listen(link: AgentLink) -> Planner:
            self.planner = Planner(self.grid, layout, 256, "http://nowhere", link.send, self.invited)
            return self.planner

        self.role = self.link.connect(listen)

    # the gateway's part

    def invited(self, reply_to: str, ready: Ready) -> None:
        job = self.planner._jobs[ready.grant]
        tokens = list(memoryview(job.start.tokens).cast("I"))
        count = 1 if isinstance(job.start, wire.StartPrefill) else job.start.max_tokens
        params = {engine_wire.GRANT_PARAMETER: {"grant": ready.grant}}
        with self.lock:
            self.requests.append(FakeRequest(f"{self.role}-{next(self.names)}", tokens, count, params))
        self.work.set()

    # vLLM's part

    def run(self) -> None:
        try:
            while not self.left.is_set():
                if not (self.requests or self.ending):
                    self.work.wait(0.05)
                    self.work.clear()
                    continue
                self.step()
                if not any(r.state == "running" for r in self.requests):
                    self.left.wait(0.002)
        except Exception as error:
            self.faults.append(repr(error))
            raise
        finally:
            self.link.close()
            for worker in self.workers:
                worker.close()

    def step(self) -> None:
        with self.lock:
            waiting = [r for r in self.requests if r.state == "waiting"]
        self.preempt()
        scheduled: dict[str, int] = {}
        for request in waiting:
            self.admit(request)
        for request in self.requests:
            if request.state == "running":
                left = request.num_tokens - request.num_computed_tokens
                scheduled[request.request_id] = min(left, self.rng.randrange(1, 12))
        state = SimpleNamespace(resolve_block_ids=lambda name: (self.named(name).blocks,))
        plan = self.planner.plan_step(SimpleNamespace(num_scheduled_tokens=scheduled, kv_connector_block_state=state))
        ended = list(self.pool.map(lambda rank: self.work_of(rank, plan, scheduled), range(self.ranks)))
        self.settle(scheduled, ended)

    def named(self, name: str) -> FakeRequest:
        return next(r for r in self.requests if r.request_id == name)

    def preempt(self) -> None:
        running = [r for r in self.requests if r.state == "running"]
        if running and self.rng.random() < 0.05:
            request = self.rng.choice(running)
            self.release(request)
            request.state, request.num_computed_tokens = "waiting", 0
            self.preemptions += 1

    def release(self, request: FakeRequest) -> None:
        self.free += request.blocks
        self.local.append((request.all_token_ids[: request.num_computed_tokens], request.blocks))
        request.blocks = []

    def admit(self, request: FakeRequest) -> None:
        size = self.grid.vllm_tokens
        own = self.own_hit(request)
        external, later = self.planner.matched(request, len(own) * size)
        need = -(-(request.num_tokens + request.max_tokens) // size)
        if external is None or need - len(own) > len([b for b in self.free if b not in own]):
            return
        self.free = [b for b in self.free if b not in own]
        request.blocks = own + [self.free.pop(0) for _ in range(need - len(own))]
        taken = set(request.blocks[len(own) :])
        self.local = [(tokens, blocks) for tokens, blocks in self.local if not taken & set(blocks)]
        request.num_computed_tokens = len(own) * size + external
        self.planner.allocated(request, request.blocks, external)
        self.loaded += external
        request.state = "loading" if later else "running"

    def own_hit(self, request: FakeRequest) -> list[int]:
        """Blocks of vLLM's own cache that begin as the request does, at random cut short; not those in use."""
        size, best = self.grid.vllm_tokens, []
        for tokens, blocks in self.local:
            same = 0
            for a, b in zip(tokens, request.all_token_ids[: request.num_tokens - 1], strict=False):
                if a != b:
                    break
                same += 1
            whole = blocks[: same // size]
            if len(whole) > len(best) and set(whole) <= set(self.free):
                best = whole
        return best[: self.rng.randrange(len(best) + 1)]

    def work_of(self, rank: int, plan: Any, scheduled: dict[str, int]) -> tuple[set[str], set[str], set[int], Any]:
        worker = self.workers[rank]
        worker.begin(plan)
        worker.load()
        if scheduled:
            for layer, name in enumerate(self.caches[rank]):
                worker.before_layer(name)
                for request_id, count in scheduled.items():
                    self.attend(rank, layer, self.named(request_id), count, set(plan.lost) | worker._lost)
                worker.after_layer(name)
        worker.end()
        sent, received = worker.take_ended()
        return sent, received, worker.take_lost(), worker.take_done()

    def attend(self, rank: int, layer: int, request: FakeRequest, count: int, lost: set[int]) -> None:
        cache, size = self.caches[rank][f"model.layers.{layer}.attn"], self.grid.vllm_tokens
        width, stop = self.page // size, request.num_computed_tokens + count
        for position, token in enumerate(request.all_token_ids[:stop]):
            block, row = request.blocks[position // size], size - 1 - position % size  # an order of its own
            cells = cache[block, row * width : (row + 1) * width]
            if position >= request.num_computed_tokens:
                cells.fill_(kv_byte(token, position, layer, rank))
            elif block not in lost and (cells != kv_byte(token, position, layer, rank)).any():
                self.faults.append(f"{request.request_id}: wrong KV of token {position} in layer {layer}, rank {rank}")

    def settle(self, scheduled: dict[str, int], ended: list[tuple[set[str], set[str], set[int], Any]]) -> None:
        """What vLLM does with the workers' answers: update_from_output."""
        lost = set.union(*(e[2] for e in ended))
        for request_id, count in scheduled.items():
            request = self.named(request_id)
            bad = next((i for i, b in enumerate(request.blocks) if b in lost), None)
            if bad is not None and bad * self.grid.vllm_tokens < request.num_computed_tokens:
                request.num_computed_tokens = bad * self.grid.vllm_tokens
                self.recomputed += 1
                continue
            request.num_computed_tokens += count
            if request.num_computed_tokens == request.num_tokens:
                request.output.append(200 + len(request.output))
        dones = [e[3] for e in ended if e[3]]
        done = dones[0] if dones else None
        for other in dones[1:]:
            done = done.aggregate(other)
        sent, received = (set.intersection(*(e[i] for e in ended)) for i in (0, 1))
        assert all(e[0] == sent for e in ended)
        self.partly = getattr(self, "partly", [set() for _ in ended])
        for rank, e in enumerate(ended):
            self.partly[rank] |= e[1]
        received = set.intersection(*self.partly)
        for rank in self.partly:
            rank -= received
        self.planner.done(sent, received, done)
        for name in received:
            request = self.named(name)
            bad = next((i for i, b in enumerate(request.blocks) if b in lost), None)
            computed = request.num_computed_tokens if bad is None else bad * self.grid.vllm_tokens
            request.num_computed_tokens = min(computed, request.num_tokens - 1)
            request.state = "running"
        for name in sent:
            self.release(self.ending.pop(name))
        self.finish()

    def finish(self) -> None:
        for request in [r for r in self.requests if len(r.output) >= r.max_tokens]:
            with self.lock:
                self.requests.remove(request)
            if self.planner.finished(request, request.blocks, completed=True, capped=True):
                self.ending[request.request_id] = request
            else:
                self.release(request)
