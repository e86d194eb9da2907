"""What the connector counts, in vLLM's forms: its log line and its /metrics.

Counts travel as a flat dictionary, "family" or "family/label" to a number, and add up.
"""

from typing import Any

from prometheus_client import Counter
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

FAMILIES = {  # name: (what it is, the label that it has beside vLLM's own)
    "hit_tokens": ("Prompt tokens from storage or another arena, by the path that they took", "path"),
    "filled_bytes": ("KV that came layer by layer into a prefill batch", None),
    "pushed_bytes": ("New KV that left layer by layer for the decode node", None),
    "loaded_bytes": ("KV of prompts that the decode engine took from its node's arena", None),
    "saved_bytes": ("KV of generated blocks that went to the arena, to be written back", None),
    "lost_tokens": ("Tokens whose KV was promised and did not come; vLLM computed them itself", None),
    "failed_batches": ("Prefill batches whose transfer failed", None),
    "unplanned_requests": ("Requests that came without a grant of the scheduler; served without the store", None),
    "layer_wait_seconds": ("Waiting for cached KV of a layer in prefill batches", "layer"),
}


class DualPathStats(KVConnectorStats):
    """Counts since the last ones."""

    def reset(self) -> None:
        """Begin anew."""
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """With those of another process or time."""
        for name, count in other.data.items():
            self.data[name] = self.data.get(name, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        """For the log: one number a family."""
        sums: dict[str, int | float] = {}
        for name, count in self.data.items():
            family = name.partition("/")[0]
            sums[family] = sums.get(family, 0) + count
        return {name: round(count, 3) for name, count in sums.items()}

    def is_empty(self) -> bool:
        """Whether there is nothing to say."""
        return not self.data


class DualPathMetrics(KVConnectorPromMetrics):
    """vllm:dualpath_* in the server's /metrics."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        counter = metric_types[Counter]
        self._families = {
            name: counter(
                name=f"vllm:dualpath_{name}", documentation=words, labelnames=[*labelnames, *([label] if label else [])]
            )
            for name, (words, label) in FAMILIES.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add what was counted."""
        values = self.per_engine_labelvalues[engine_idx]
        for name, count in transfer_stats_data.items():
            family, _, label = name.partition("/")
            self._families[family].labels(*values, *([label] if label else [])).inc(count)
