"""What nodes and engines do over time, sampled at even intervals that double when the run gets long."""

from typing import Any

import msgspec

from dualpath.core.report import Role
from dualpath.sim.cluster import Cluster
from dualpath.sim.kernel import BACKGROUND

_FIRST_INTERVAL_NS = 250_000_000
_MOST_SAMPLES = 2048


class Series(msgspec.Struct, kw_only=True):
    """Sums since the start of the clock, at the times of `time_s`."""

    time_s: list[float] = msgspec.field(default_factory=list)
    read_bytes: dict[str, list[float]] = msgspec.field(default_factory=dict)  # by node
    attention_ns: dict[str, list[float]] = msgspec.field(default_factory=dict)  # by prefill engine
    waiting: list[int] = msgspec.field(default_factory=list)  # requests without engines, now
    running: list[int] = msgspec.field(default_factory=list)


class Sampler:
    """Fills a Series while the cluster has something to do."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._interval_ns = _FIRST_INTERVAL_NS
        self.series = Series(
            read_bytes={name: [] for name in cluster.nodes}, attention_ns={name: [] for name in cluster.prefills}
        )
        cluster.kernel.after(self._interval_ns, self._sample, priority=BACKGROUND)

    def _sample(self) -> None:
        cluster, series = self._cluster, self.series
        series.time_s.append(cluster.kernel.now_ns / 1e9)
        for name, node in cluster.nodes.items():
            series.read_bytes[name].append(node.reads.bytes_moved)
        for engine, prefill in cluster.prefills.items():
            series.attention_ns[engine].append(prefill.attention_ns)
        series.waiting.append(len(cluster.machine.waiting))
        series.running.append(len(cluster.asks) - len(cluster.machine.waiting))
        if len(series.time_s) == _MOST_SAMPLES:
            self._thin()
        cluster.kernel.after(self._interval_ns, self._sample, priority=BACKGROUND)

    def _thin(self) -> None:
        """Keep every second sample."""
        self._interval_ns *= 2
        series = self.series
        columns: list[list[Any]] = [series.time_s, series.waiting, series.running]
        for values in (*columns, *series.read_bytes.values(), *series.attention_ns.values()):
            del values[::2]


def read_imbalance(series: Series, roles: dict[str, Role], role: Role | None = None) -> list[float]:
    """Most bytes that one node read / mean, for each interval; over the nodes of a role, or all."""
    names = [name for name in series.read_bytes if role is None or roles[name] is role]
    return _max_over_mean([series.read_bytes[name] for name in names])


def attention_imbalance(series: Series) -> list[float]:
    """Most attention time that one prefill engine spent / mean, for each interval."""
    return _max_over_mean(list(series.attention_ns.values()))


def _max_over_mean(sums: list[list[float]]) -> list[float]:
    ratios = []
    for at in range(1, len(sums[0]) if sums else 0):
        spent = [values[at] - values[at - 1] for values in sums]
        if sum(spent) > 0:
            ratios.append(max(spent) * len(spent) / sum(spent))
    return ratios
