"""Counters of a vLLM server's connector, and how fast its engine works."""

import time

from dualpath.core.engine_wire import StreamItem
from dualpath.core.rate import RateMeter
from dualpath.core.report import EngineStats, Role

FIRST_RATE = 10_000.0  # prompt tokens a second, until the engine has shown its own


class Load:
    """Counts since the start of the server."""

    def __init__(self, token_bytes: int) -> None:
        """`token_bytes`: of a token's KV in all layers."""
        self._token_bytes = token_bytes
        self._fresh: dict[str, float] = {}  # since they were taken, for vLLM's metrics
        self._steps = self._step_requests = 0
        self._new_tokens = 0  # prefill: pushed
        self._prompt_tokens = 0  # prefill: of finished prompts, cached ones included
        self._generated_tokens = 0
        self._layer_wait_ns = 0
        self._rate = RateMeter(FIRST_RATE)
        self._busy_ns = 0
        self._seen_ns = time.monotonic_ns()

    def count(self, name: str, amount: float = 1) -> None:
        """One of stats.FAMILIES; tokens of a family of bytes are given as bytes."""
        if amount:
            self._fresh[name] = self._fresh.get(name, 0) + amount

    def take(self) -> dict[str, float]:
        """Counts since the last call."""
        fresh, self._fresh = self._fresh, {}
        return fresh

    def step(self, requests: int) -> None:
        """vLLM has scheduled a step."""
        self._steps += 1
        self._step_requests += requests

    def hit(self, own_tokens: int, cached_tokens: int) -> None:
        """A prefill began with so many cached tokens, of which its own node had read or held so many."""
        self.count("hit_tokens/prefill", own_tokens)
        self.count("hit_tokens/decode", cached_tokens - own_tokens)

    def streamed(self, item: StreamItem, block_tokens: int) -> None:
        """One item of a batch was announced."""
        self.count("filled_bytes", item.fill_blocks * block_tokens * self._token_bytes)
        self.count("pushed_bytes", item.push_tokens * self._token_bytes)
        self._new_tokens += item.push_tokens

    def loaded(self, tokens: int) -> None:
        """A decode request's prompt is copied from the arena."""
        self.count("loaded_bytes", tokens * self._token_bytes)

    def saved(self, tokens: int) -> None:
        """Generated blocks are copied to the arena."""
        self.count("saved_bytes", tokens * self._token_bytes)

    def prefilled(self, prompt_tokens: int) -> None:
        """A prompt is finished."""
        self._prompt_tokens += prompt_tokens

    def generated(self, tokens: int) -> None:
        """A generation is finished."""
        self._generated_tokens += tokens

    def waited(self, wait_ns: int) -> None:
        """Prefill batches waited for layers."""
        self._layer_wait_ns += wait_ns

    def report(self, stats: EngineStats, requests: int) -> EngineStats:
        """`stats` as of now; to be called about twice a second."""
        now_ns = time.monotonic_ns()
        if requests:
            self._busy_ns += now_ns - self._seen_ns
        self._seen_ns = now_ns
        stats.steps, stats.step_requests = self._steps, self._step_requests
        stats.prompt_tokens, stats.generated_tokens = self._new_tokens, self._generated_tokens
        stats.layer_wait_ns = self._layer_wait_ns
        if stats.role is Role.PREFILL:
            self._rate.update(self._prompt_tokens, self._busy_ns)
            stats.process_tokens_per_s = self._rate.per_s
        return stats
