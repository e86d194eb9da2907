"""Which bytes of a request move over which links, and when (paper section 2)."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dualpath.policy.batch import PrefillChunk
from dualpath.sim.grant import Grant
from dualpath.sim.links import Link
from dualpath.sim.network import Network
from dualpath.sim.node import SimNode


class Transfers:
    """Starts flows. `with_hits`: what the prefill node read reaches the decode node through the prefill (the paper's
    hand-over), not by a pull of its own (our house). `free`: the Oracle, nothing takes time or moves.
    """

    def __init__(
        self, network: Network, kv_bytes_per_token: float, layers: int, *, with_hits: bool, free: bool
    ) -> None:
        self._network = network
        self._token_bytes = kv_bytes_per_token
        self._layers = layers  # a batch of transfers is posted for each
        self._with_hits = with_hits
        self.free = free

    def stream(self, batch: Sequence[tuple[Grant, PrefillChunk]], compute_ns: int, done: Callable[[], None]) -> int:
        """Layer by layer beside a pass: cached KV in, new KV out; `done` is called for each of the flows returned.

        A window of two layers keeps transfers at the pace of the computation: they are no faster, so that a pass takes
        no more of a link than it needs. What goes the same way is one flow.
        """
        tokens: dict[tuple[Link, ...], int] = {}
        for grant, chunk in batch:
            for links, count in self._ways(grant, chunk):
                tokens[links] = tokens.get(links, 0) + count
        pace_s = compute_ns * (self._layers - 1) / self._layers / 1e9
        for links, count in tokens.items():
            self._send(links, count, done, (), count * self._token_bytes / pace_s if pace_s else math.inf)
        return 0 if self.free else len(tokens)

    def load(self, grant: Grant, done: Callable[..., None], *args: Any) -> int:
        """The whole hit to the prefill engine at once; `done` is called for each of the flows returned."""
        return sum(self._send(links, count, done, args) for links, count in self._inbound(grant, grant.cached_tokens))

    def store(self, grant: Grant, done: Callable[..., None], *args: Any) -> int:
        """The whole prompt's KV to the decode node's buffer at once, as far as it is not there."""
        links, count = self._outbound(grant, grant.ask.prompt_tokens - grant.cached_tokens, with_hit=True)
        return self._send(links, count, done, args)

    def _ways(self, grant: Grant, chunk: PrefillChunk) -> Iterator[tuple[tuple[Link, ...], int]]:
        yield from self._inbound(grant, chunk.cached_tokens)
        first = chunk.cached_tokens == grant.cached_tokens
        yield self._outbound(grant, chunk.new_tokens, with_hit=first)

    def _inbound(self, grant: Grant, cached_tokens: int) -> Iterator[tuple[tuple[Link, ...], int]]:
        """What the prefill node read comes from there, the rest (earlier chunks too) from the decode node."""
        local = min(grant.local_tokens, cached_tokens)
        prefill, decode = grant.prefill, grant.decode
        if local:
            yield (prefill.node.dram, prefill.cnic.into), local
        if cached_tokens > local:
            yield (decode.node.dram, decode.cnic.out, prefill.cnic.into), cached_tokens - local

    def _outbound(self, grant: Grant, new_tokens: int, *, with_hit: bool) -> tuple[tuple[Link, ...], int]:
        """New KV to the decode node's buffer, in the paper's hand-over with the hit that the prefill node read."""
        links = (grant.prefill.cnic.out, grant.decode.cnic.into, grant.decode.node.dram)
        return links, new_tokens + (grant.local_tokens if self._with_hits and with_hit else 0)

    def pull(self, grant: Grant, done: Callable[..., None], *args: Any) -> int:
        """What the prefill node read, from its buffer to the decode node's (our house)."""
        prefill, decode = grant.prefill, grant.decode
        links = (prefill.node.dram, prefill.cnic.out, decode.cnic.into, decode.node.dram)
        return self._send(links, grant.local_tokens, done, args)

    def fetch(self, source: SimNode, grant: Grant, tokens: int, done: Callable[..., None], *args: Any) -> int:
        """Blocks from another node's DRAM to the decode node's buffer, through the NICs beside the decode engine's."""
        decode = grant.decode
        out = source.cnics[decode.cnic_index % len(source.cnics)].out
        return self._send((source.dram, out, decode.cnic.into, decode.node.dram), tokens, done, args)

    def enter(self, grant: Grant, done: Callable[..., None], *args: Any) -> int:
        """The prompt's KV from the decode node's buffer to the decode engine."""
        decode = grant.decode
        return self._send((decode.node.dram, decode.cnic.into), grant.ask.prompt_tokens, done, args)

    def _send(
        self, links: tuple[Link, ...], tokens: int, done: Callable[..., None], args: tuple[Any, ...],
        most_bytes_per_s: float = math.inf,
    ) -> int:  # fmt: skip
        if self.free:
            return 0
        self._network.send(
            links, tokens * self._token_bytes, done, *args, messages=self._layers, most_bytes_per_s=most_bytes_per_s
        )
        return 1
