"""What the cluster and the kernel count, and the difference that a run made."""

import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx
import msgspec

from dualpath.bench.wire import wire_between, wire_bytes
from dualpath.core.errors import ServiceError
from dualpath.core.ids import NodeId
from dualpath.core.report import ClusterReport, NodeStats, Role
from dualpath.launch.local import LocalCluster

SETTLE_DEADLINE_S = 60.0
REPORT_TIMEOUT_S = 10.0


class NodeSpent(msgspec.Struct, frozen=True):
    """One node's part of a run."""

    node: NodeId
    role: Role
    read_bytes: int
    retained_bytes: int
    read_busy_ns: int
    writes_skipped: int


class Spent(msgspec.Struct, frozen=True):
    """All nodes' parts of a run."""

    nodes: list[NodeSpent]
    any_read_ns: int
    decisions: dict[str, int]
    recomputes: dict[str, int]

    def read_bytes(self, role: Role) -> int:
        """Bytes that the nodes of a role read from storage."""
        return sum(node.read_bytes for node in self.nodes if node.role is role)


class Cost(msgspec.Struct, frozen=True):
    """What a run took of the machine."""

    spent: Spent
    cpu_s: dict[str, float]  # by kind of process
    restarted: list[str]  # roles
    wire_bytes: dict[str, int]  # by node and direction; empty where no counters are known


class Meter:
    """Reads everything that counts before a run, and again after it."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._report = self._settled()
        self._pids = cluster.pids()
        self._cpu_s = cpu_seconds(self._pids)
        self._wire = wire_bytes(cluster.config)

    def stop(self) -> Cost:
        """The cost since the start; call it at once when the run has ended."""
        pids = self._cluster.pids()
        restarted = [role for role, pid in self._pids.items() if pids.get(role) != pid]
        cpu_s = {kind: now_s - self._cpu_s.get(kind, 0.0) for kind, now_s in cpu_seconds(pids).items()}
        spent = spent_between(self._report, self._settled())
        return Cost(spent, cpu_s, restarted, wire_between(self._wire, wire_bytes(self._cluster.config)))

    def _settled(self) -> ClusterReport:
        return settled_report(self._cluster.url, self._cluster.config.limits.heartbeat_s)


def settled_report(url: str, heartbeat_s: float, *, durable: bool = False) -> ClusterReport:
    """The report once nothing runs and the nodes' counters, which come with heartbeats, stand still.

    With `durable` also the write-back queues are empty. ServiceError when that takes too long.
    """
    deadline_s = time.monotonic() + SETTLE_DEADLINE_S
    earlier = None
    with httpx.Client(timeout=REPORT_TIMEOUT_S, trust_env=False) as http:
        while time.monotonic() < deadline_s:
            report = _report(http, url)
            counters = [_counters(node) for node in report.nodes]
            if counters == earlier and _is_idle(report, durable=durable):
                return report
            earlier = counters
            time.sleep(2 * heartbeat_s)
    raise ServiceError(
        f"the cluster did not come to rest within {SETTLE_DEADLINE_S:g} s: {report.running_requests} requests run, "
        f"{report.waiting_requests} wait, {report.pending_writes} blocks are not written"
    )


def _report(http: httpx.Client, url: str) -> ClusterReport:
    try:
        answer = http.get(f"{url}/cluster").raise_for_status()
        return msgspec.json.decode(answer.content, type=ClusterReport)
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        raise ServiceError(f"the cluster did not report: {error}") from None


def _is_idle(report: ClusterReport, *, durable: bool) -> bool:
    waits = report.running_requests + report.waiting_requests + sum(node.read_queue_blocks for node in report.nodes)
    return waits == 0 and not (durable and report.pending_writes)


def _counters(node: NodeStats) -> tuple[int, ...]:
    return node.read_bytes, node.retained_bytes, node.read_busy_ns, node.writes_skipped


def spent_between(before: ClusterReport, after: ClusterReport) -> Spent:
    """The difference; a node that started again during the run counts from there."""
    earlier = {node.node: node for node in before.nodes}
    nodes = []
    for node in after.nodes:
        then = earlier.get(node.node) or NodeStats(node.node, node.role)
        change = [b - a for a, b in zip(_counters(then), _counters(node), strict=True)]
        nodes.append(NodeSpent(node.node, node.role, *(_counters(node) if min(change) < 0 else change)))
    return Spent(
        nodes=nodes,
        any_read_ns=max(after.any_read_ns - before.any_read_ns, 0),
        decisions=dict(Counter(after.decisions) - Counter(before.decisions)),
        recomputes=dict(Counter(after.recomputes) - Counter(before.recomputes)),
    )


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU time so far of the processes by kind ("engine" for "engine p0/0"), and of this one as "client"."""
    seconds = {"client": time.process_time()}
    for role, pid in pids.items():
        kind, found = role.split()[0], [_cpu_seconds(process) for process in family(pid)]
        if found:
            seconds[kind] = seconds.get(kind, 0.0) + sum(found)
    return seconds


def family(pid: int) -> list[int]:
    """A process and its children that live: vLLM computes in one. Empty when it has just died."""
    try:
        files = list(Path(f"/proc/{pid}/task").glob("*/children"))
        children = [int(child) for file in files for child in file.read_text().split()]
    except OSError:
        return []
    return [pid, *(member for child in children for member in family(child))] if files else []


def _cpu_seconds(pid: int) -> float:
    """User and system time; 0 when it has just died: the run's own errors tell of it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
