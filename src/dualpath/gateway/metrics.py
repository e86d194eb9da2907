"""Prometheus exposition: the cluster's report at scrape time, and latencies as the gateway saw them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from dualpath.core.report import ClusterReport, EngineStats, NodeStats
from dualpath.core.units import NS_PER_S
from dualpath.gateway.timing import Stopwatch

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 4, 6, 10, 20, 40, 80, 160)

NODE_METRICS: list[tuple[str, str, str, Callable[[NodeStats], float]]] = [
    ("counter", "storage_read_bytes", "Bytes read from storage", lambda n: n.read_bytes),
    ("counter", "storage_written_bytes", "Bytes written back to storage", lambda n: n.written_bytes),
    ("counter", "storage_read_errors", "Failed reads", lambda n: n.read_errors),
    (
        "counter",
        "storage_read_busy_seconds",
        "Time with a read waiting or running",
        lambda n: n.read_busy_ns / NS_PER_S,
    ),
    (
        "counter",
        "reads_shared_blocks",
        "Blocks that came along with another request's read",
        lambda n: n.reads_shared,
    ),
    (
        "counter",
        "retained_bytes",
        "Hit bytes taken from an arena that still held them",
        lambda n: n.retained_bytes,
    ),
    ("counter", "writes_skipped_blocks", "New blocks that were not persisted", lambda n: n.writes_skipped),
    (
        "counter",
        "grants_refused",
        "Transfers refused because their slots' grant had ended",
        lambda n: n.grants_refused,
    ),
    (
        "gauge",
        "storage_read_rate_bytes_per_second",
        "Read rate while busy",
        lambda n: n.read_rate_bytes_per_s,
    ),
    ("gauge", "read_queue_blocks", "Blocks waiting or being read", lambda n: n.read_queue_blocks),
    ("gauge", "write_queue_blocks", "Blocks waiting to be written back", lambda n: n.write_queue_blocks),
    ("gauge", "arena_slots", "Slots of the arena", lambda n: n.arena_slots),
    ("gauge", "arena_slots_used", "Slots of the arena in use", lambda n: n.arena_slots_used),
]

NODE_COUNTS: list[tuple[str, str, str, Callable[[NodeStats], dict[str, int]]]] = [
    ("transferred_bytes", "Bytes over the compute network by lane", "lane", lambda n: n.lane_bytes),
    ("transport_bytes", "Bytes between nodes by what carried them", "transport", lambda n: n.transport_bytes),
    (
        "transport_fallbacks",
        "Transports given up for a lesser one, as they could not connect",
        "transport",
        lambda n: n.transport_fallbacks,
    ),
]

ENGINE_METRICS: list[tuple[str, str, str, Callable[[EngineStats], float]]] = [
    ("gauge", "engine_requests", "Unfinished requests", lambda e: e.requests),
    ("gauge", "engine_tokens", "Tokens of unfinished requests", lambda e: e.tokens),
    ("gauge", "engine_kv_memory_bytes", "KV memory in use", lambda e: e.kv_memory_bytes),
    ("counter", "engine_steps", "Forward passes", lambda e: e.steps),
    ("counter", "engine_step_requests", "Sum of batch sizes over steps", lambda e: e.step_requests),
    ("counter", "engine_prompt_tokens", "New prompt tokens computed", lambda e: e.prompt_tokens),
    ("counter", "engine_generated_tokens", "Tokens generated", lambda e: e.generated_tokens),
    ("counter", "engine_layer_wait_seconds", "Waiting for layers", lambda e: e.layer_wait_ns / NS_PER_S),
]

CLUSTER_METRICS: list[tuple[str, str, str, Callable[[ClusterReport], float]]] = [
    ("gauge", "ready", "1 when the cluster serves", lambda r: r.ready),
    ("gauge", "waiting_requests", "Requests not yet dispatched", lambda r: r.waiting_requests),
    ("gauge", "running_requests", "Requests dispatched and unfinished", lambda r: r.running_requests),
    ("counter", "finished_requests", "Requests served", lambda r: r.finished_requests),
    ("counter", "failed_requests", "Requests that ended in an error", lambda r: r.failed_requests),
    ("gauge", "index_blocks", "Blocks in the prefix index", lambda r: r.index_blocks),
    ("gauge", "pending_writes_blocks", "Blocks not yet durable", lambda r: r.pending_writes),
    (
        "counter",
        "any_read_seconds",
        "Time with a read waiting or running anywhere",
        lambda r: r.any_read_ns / NS_PER_S,
    ),
]


class ReportCollector:
    """Metrics of one report."""

    def __init__(self, report: ClusterReport) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """All metric families of the report."""
        report = self._report
        yield from _families(CLUSTER_METRICS, [report], [], lambda _: [])
        yield from _families(NODE_METRICS, report.nodes, ["node", "role"], lambda n: [n.node, n.role])
        yield from _families(ENGINE_METRICS, report.engines, ["engine", "role"], lambda e: [e.engine, e.role])
        for name, words, label, read in NODE_COUNTS:
            rows = ((node.node, what, count) for node in report.nodes for what, count in read(node).items())
            yield _counted(name, words, ["node", label], rows)
        decisions = ((*_kind_and_choice(name), count) for name, count in report.decisions.items())
        yield _counted("decisions", "Scheduling decisions", ["kind", "choice"], decisions)
        yield _counted("recomputes", "Requests started again", ["cause"], report.recomputes.items())


class Latencies:
    """Histograms of what clients waited for, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._ttft = self._histogram("ttft", "Arrival until the first token (TTFT)")
        self._ttst = self._histogram("ttst", "First until the second token (TTST)")
        self._tpot = self._histogram("tpot", "Mean time between tokens after the first (TPOT)")
        self._e2e = self._histogram("e2e", "Arrival until the answer was complete")
        self._ended = Counter(
            "dualpath_gateway_requests", "Requests by how they ended", ["outcome"], registry=self.registry
        )

    def observe(self, watch: Stopwatch, e2e_ns: int) -> None:
        """Count one request that was served."""
        if watch.first_ns is not None:
            self._ttft.observe(watch.first_ns / NS_PER_S)
        if watch.first_ns is not None and watch.second_ns is not None:
            self._ttst.observe((watch.second_ns - watch.first_ns) / NS_PER_S)
        if watch.per_token_ns is not None:
            self._tpot.observe(watch.per_token_ns / NS_PER_S)
        self._e2e.observe(e2e_ns / NS_PER_S)

    def ended(self, outcome: str) -> None:
        """Count how a request ended: served, cancelled, refused or failed."""
        self._ended.labels(outcome).inc()

    def _histogram(self, name: str, words: str) -> Histogram:
        return Histogram(f"dualpath_{name}_seconds", words, buckets=_SECONDS, registry=self.registry)


def exposition(report: ClusterReport, latencies: Latencies) -> bytes:
    """The text that Prometheus scrapes."""
    registry = CollectorRegistry()
    registry.register(ReportCollector(report))
    return generate_latest(registry) + generate_latest(latencies.registry)


def _families(
    table: list[tuple[str, str, str, Callable[[Any], float]]],
    things: list[Any],
    labels: list[str],
    values: Callable[[Any], list[str]],
) -> Iterator[Metric]:
    for kind, name, words, read in table:
        family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(
            f"dualpath_{name}", words, labels=labels
        )
        for thing in things:
            family.add_metric(values(thing), float(read(thing)))
        yield family


def _counted(name: str, words: str, labels: list[str], rows: Iterable[tuple[Any, ...]]) -> Metric:
    family = CounterMetricFamily(f"dualpath_{name}", words, labels=labels)
    for *values, count in rows:
        family.add_metric(values, count)
    return family


def _kind_and_choice(name: str) -> tuple[str, str]:
    kind, _, choice = name.partition(":")
    return kind, choice
