"""Which bytes of a request move over which links, and when (paper section 2)."""

from collections.abc import Callable
from typing import Any

from dualpath.sim.grant import Grant
from dualpath.sim.network import Network


class Transfers:
    """Starts flows. `with_hits`: what the prefill node read reaches the decode node through the prefill (the paper's
    hand-over), not by a pull of its own (our house). `free`: the Oracle, nothing takes time or moves.
    """

    def __init__(
        self, network: Network, kv_bytes_per_token: float, layers: int, *, with_hits: bool, free: bool
    ) -> None:
        self._network = network
        self._token_bytes = kv_bytes_per_token
        self._messages = layers  # a batch of transfers is posted for each layer
        self._with_hits = with_hits
        self._free = free

    def load(self, grant: Grant, cached_tokens: int, done: Callable[..., None], *args: Any) -> int:
        """Cached KV to the prefill engine: what its node read from there, the rest from the decode node.

        `done` is called once for each of the flows, whose number is returned.
        """
        local = min(grant.local_tokens, cached_tokens)
        remote = cached_tokens - local
        prefill, decode = grant.prefill, grant.decode
        flows = 0
        if local:
            flows += self._send((prefill.node.dram, prefill.cnic.into), local, done, args)
        if remote:
            links = (decode.node.dram, decode.cnic.out, prefill.cnic.into)
            flows += self._send(links, remote, done, args)
        return flows

    def store(self, grant: Grant, new_tokens: int, with_hit: bool, done: Callable[..., None], *args: Any) -> int:
        """New KV to the decode node's buffer, in the paper's hand-over with the hit that the prefill node read."""
        tokens = new_tokens + (grant.local_tokens if self._with_hits and with_hit else 0)
        links = (grant.prefill.cnic.out, grant.decode.cnic.into, grant.decode.node.dram)
        return self._send(links, tokens, done, args)

    def pull(self, grant: Grant, done: Callable[..., None], *args: Any) -> int:
        """What the prefill node read, from its buffer to the decode node's (our house)."""
        prefill, decode = grant.prefill, grant.decode
        links = (prefill.node.dram, prefill.cnic.out, decode.cnic.into, decode.node.dram)
        return self._send(links, grant.local_tokens, done, args)

    def enter(self, grant: Grant, done: Callable[..., None], *args: Any) -> int:
        """The prompt's KV from the decode node's buffer to the decode engine."""
        decode = grant.decode
        return self._send((decode.node.dram, decode.cnic.into), grant.ask.prompt_tokens, done, args)

    def _send(self, links: Any, tokens: int, done: Callable[..., None], args: tuple[Any, ...]) -> int:
        if self._free:
            return 0
        self._network.send(links, tokens * self._token_bytes, done, *args, messages=self._messages)
        return 1
