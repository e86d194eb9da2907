"""How long an engine's batches take: computed from hardware and model, or from coefficients measured on a live cluster.

Both have the same attributes; see docs/design/engine-model.md for the model and its constants.
"""

from collections.abc import Sequence

import msgspec

from dualpath.core.config import parse_topology
from dualpath.core.errors import ConfigError
from dualpath.policy.batch import AttentionTime
from dualpath.sim.engine_costs import decode_attention, group_costs, prefill_attention
from dualpath.sim.engine_memory import DECODE_GROUP_LIMIT, PREFILL_GROUP_LIMIT, free_bytes, group_engines
from dualpath.sim.hardware import Hardware
from dualpath.sim.models import ModelShape


class EngineTime:
    """One engine of each role in a cluster of `topology`; ConfigError when the model does not fit its GPUs.

    `attention` predicts what the compute quota is held against. Engines of a group step together: a step takes as long
    as its slowest member needs, plus what all do together.
    """

    def __init__(self, hardware: Hardware, model: ModelShape, *, topology: str) -> None:
        prefill_nodes, decode_nodes = parse_topology(topology)
        self.layers = model.layers
        self.prefill_group_engines = group_engines(hardware, model, prefill_nodes, PREFILL_GROUP_LIMIT)
        self.decode_group_engines = group_engines(hardware, model, decode_nodes, DECODE_GROUP_LIMIT)
        self.attention = prefill_attention(hardware, model)
        self._decode_attention = decode_attention(hardware, model)
        self._prefill = group_costs(hardware, model, self.prefill_group_engines)
        self._decode = group_costs(hardware, model, self.decode_group_engines)
        self._prefill_free_bytes = free_bytes(hardware, model, self.prefill_group_engines)
        self._decode_free_bytes = free_bytes(hardware, model, self.decode_group_engines)
        self._token_bytes = model.kv_bytes_per_token

    def prefill_step_ns(self, attention_ns: Sequence[float], new_tokens: Sequence[int]) -> int:
        """One pass of a prefill group: predicted attention and new tokens of each member that has work."""
        costs = self._prefill
        token_ns, weights_ns = costs.local_token_ns, costs.local_weights_ns
        slowest_ns = max(
            [spent + max(new * token_ns, weights_ns) for spent, new in zip(attention_ns, new_tokens, strict=True)]
        )
        return costs.step_ns(slowest_ns, sum(new_tokens), max(new_tokens))

    def decode_step_ns(self, requests: Sequence[int], context_tokens: Sequence[int]) -> int:
        """One token for every request of a decode group: requests of each member, and the sum of their contexts."""
        costs, attention = self._decode, self._decode_attention
        every_ns, limited_ns, limit = attention.every_key_ns, attention.limited_key_ns, attention.limit_tokens
        slowest_ns = max(
            [
                context * every_ns + limited_ns * (context if context < count * limit else count * limit)
                for count, context in zip(requests, context_tokens, strict=True)
            ]
        )
        most = max(requests)
        # Shared out evenly, the member with the longest contexts has about the most requests, too
        slowest_ns += max(most * costs.local_token_ns, costs.local_weights_ns)
        return costs.step_ns(slowest_ns, sum(requests), most)

    def prefill_window_tokens(self, layerwise: bool) -> int:
        """KV that fits a prefill engine: two layers of it (one computes, one moves), or all."""
        token_bytes = 2 * self._token_bytes / self.layers if layerwise else self._token_bytes
        return int(self._prefill_free_bytes / token_bytes)

    def decode_kv_tokens(self) -> int:
        """KV that fits a decode engine."""
        return int(self._decode_free_bytes / self._token_bytes)


class MeasuredTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same, measured: steps are linear in what they compute. Every engine steps for itself."""

    layers: int
    attention: AttentionTime
    prefill_base_ns: float
    prefill_token_ns: float
    decode_base_ns: float
    decode_request_ns: float
    decode_context_ns: float  # a token of context
    window_tokens: int  # one layer's KV of a batch that fits a prefill engine
    kv_tokens: int
    prefill_group_engines: int = 1
    decode_group_engines: int = 1

    def __post_init__(self) -> None:
        times = [getattr(self, name) for name in self.__struct_fields__ if name.endswith("_ns")]
        if min(times) < 0 or min(self.layers, self.window_tokens, self.kv_tokens) < 1:
            raise ConfigError("measured times must not be negative, sizes at least 1; measure again")

    def prefill_step_ns(self, attention_ns: Sequence[float], new_tokens: Sequence[int]) -> int:
        """One pass of a prefill group, as long as its slowest member's."""
        token_ns = self.prefill_token_ns
        slowest_ns = max([spent + new * token_ns for spent, new in zip(attention_ns, new_tokens, strict=True)])
        return round(self.prefill_base_ns + slowest_ns)

    def decode_step_ns(self, requests: Sequence[int], context_tokens: Sequence[int]) -> int:
        """One token for every request of a decode group."""
        slowest_ns = max(
            [
                count * self.decode_request_ns + context * self.decode_context_ns
                for count, context in zip(requests, context_tokens, strict=True)
            ]
        )
        return round(self.decode_base_ns + slowest_ns)

    def prefill_window_tokens(self, layerwise: bool) -> int:
        """KV that fits a prefill engine; its memory has room for two layers of a window."""
        return self.window_tokens if layerwise else max(1, 2 * self.window_tokens // self.layers)

    def decode_kv_tokens(self) -> int:
        """KV that fits a decode engine."""
        return self.kv_tokens
