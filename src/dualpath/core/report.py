"""What the cluster says of itself: the source of /metrics, of replay's tables and of `dualpath up`'s ready check."""

import enum

import msgspec

from dualpath.core.ids import EngineId, NodeId


class Role(enum.StrEnum):
    """What a node and its engines do."""

    PREFILL = "prefill"
    DECODE = "decode"


class NodeStats(msgspec.Struct):
    """Counters of one node's agent since its start, and its queues now."""

    node: NodeId
    role: Role
    arena_slots: int = 0
    arena_slots_used: int = 0
    read_queue_blocks: int = 0  # waiting or being read
    read_bytes: int = 0  # from storage
    reads_shared: int = 0  # blocks that came along with another request's read
    retained_bytes: int = 0  # hits taken from an arena that still held them
    read_rate_bytes_per_s: float = 0.0  # measured while the queue was busy
    read_busy_ns: int = 0  # time in which any read waited or ran
    read_errors: int = 0
    write_queue_blocks: int = 0
    written_bytes: int = 0
    writes_skipped: int = 0  # blocks not persisted: queue full, parent not durable, or store failed
    lane_bytes: dict[str, int] = msgspec.field(default_factory=dict)  # layers_in, layers_out, blocks_in, blocks_out
    transport_bytes: dict[str, int] = msgspec.field(default_factory=dict)  # the same bytes by shm, tcp, nixl
    transport_fallbacks: dict[str, int] = msgspec.field(default_factory=dict)  # by the kind that could not connect
    grants_refused: int = 0


class EngineStats(msgspec.Struct):
    """Counters of one engine since its start, and its load now."""

    engine: EngineId
    role: Role
    requests: int = 0
    tokens: int = 0
    steps: int = 0
    step_requests: int = 0  # sum of batch sizes over steps
    prompt_tokens: int = 0  # new prompt tokens computed
    generated_tokens: int = 0
    kv_memory_bytes: int = 0  # KV memory of the engine now: window (prefill) or caches of running requests (decode)
    layer_wait_ns: int = 0
    process_tokens_per_s: float = 0.0  # prefill: prompt tokens, cached ones included, while it had work
    compute_tokens_per_s: float = 0.0  # prefill: new tokens only, while it had work


class ClusterReport(msgspec.Struct):
    """A snapshot over all nodes, as the scheduler knows it."""

    ready: bool = False
    missing: list[str] = msgspec.field(default_factory=list)  # what keeps it from being ready, in words
    nodes: list[NodeStats] = msgspec.field(default_factory=list)
    engines: list[EngineStats] = msgspec.field(default_factory=list)
    waiting_requests: int = 0
    running_requests: int = 0
    finished_requests: int = 0
    failed_requests: int = 0
    decisions: dict[str, int] = msgspec.field(default_factory=dict)  # "read:split", "prefill:p0/0", ... -> count
    recomputes: dict[str, int] = msgspec.field(default_factory=dict)  # cause -> requests that were started again
    index_blocks: int = 0
    pending_writes: int = 0  # blocks in write-back queues, not yet durable
    any_read_ns: int = 0  # time in which any node of the cluster had a read that waited or ran
