"""Faults of a scenario: nodes that go and come back, NICs that become slow."""

from collections.abc import Sequence

from dualpath.core.errors import ConfigError
from dualpath.core.ids import NodeId
from dualpath.sim.cluster import Cluster
from dualpath.sim.network import Link
from dualpath.sim.scenario import Fault


def schedule_faults(cluster: Cluster, faults: Sequence[Fault]) -> None:
    """Enter them into the kernel; ConfigError for nodes that do not exist and impossible times."""
    for fault in faults:
        if fault.node not in cluster.nodes:
            raise ConfigError(f"a fault of {fault.node}: there are {', '.join(cluster.nodes)}")
        if fault.at_s < 0 or (fault.for_s is not None and fault.for_s <= 0) or fault.factor <= 0:
            raise ConfigError(f"a fault of {fault.node} at {fault.at_s} s: times and factors are positive")
        cluster.kernel.at(int(fault.at_s * 1e9), _break, cluster, fault)
        if fault.for_s is not None:
            cluster.kernel.at(int((fault.at_s + fault.for_s) * 1e9), _mend, cluster, fault)


def _break(cluster: Cluster, fault: Fault) -> None:
    if fault.part == "node":
        cluster.lose(NodeId(fault.node))
    else:
        _scale(cluster, fault, fault.factor)


def _mend(cluster: Cluster, fault: Fault) -> None:
    if fault.part == "node":
        cluster.return_(NodeId(fault.node))
    else:
        _scale(cluster, fault, 1.0)


def _scale(cluster: Cluster, fault: Fault, factor: float) -> None:
    for link, rate in _links(cluster, fault):
        cluster.network.set_rate(link, rate * factor)


def _links(cluster: Cluster, fault: Fault) -> list[tuple[Link, float]]:
    node, physics = cluster.nodes[NodeId(fault.node)], cluster.physics
    if fault.part == "snic":
        return [(link, physics.snic_bytes_per_s) for link in (node.snic_in, node.snic_out)]
    return [(link, physics.cnic_bytes_per_s) for cnic in node.cnics for link in (cnic.into, cnic.out)]
