"""A simulated node: its NICs, its DRAM, its storage queues."""

from dataclasses import dataclass, field

from dualpath.core.ids import NodeId
from dualpath.core.report import Role
from dualpath.sim.kernel import Kernel
from dualpath.sim.network import Link, Network
from dualpath.sim.physics import Physics
from dualpath.sim.read_queue import ReadQueue


@dataclass(slots=True, eq=False)
class Cnic:
    """An engine's compute NIC: what enters the node's network end of it, and what leaves."""

    into: Link
    out: Link


@dataclass(slots=True, eq=False)
class SimNode:
    """A node's links and queues; `up` is False while it is lost."""

    name: NodeId
    role: Role
    snic_in: Link
    snic_out: Link
    dram: Link
    cnics: list[Cnic]
    reads: ReadQueue
    writes: ReadQueue
    up: bool = True
    grants: set[int] = field(default_factory=set)


def make_node(
    name: NodeId, role: Role, physics: Physics, block_bytes: float, kernel: Kernel, network: Network, storage: Link
) -> SimNode:
    """A node with all its links; `storage` is what all nodes share."""
    snic_in = Link(f"{name} snic in", physics.snic_bytes_per_s)
    snic_out = Link(f"{name} snic out", physics.snic_bytes_per_s)
    dram = Link(f"{name} dram", physics.dram_bytes_per_s)
    cnics = [
        Cnic(*(Link(f"{name}/{i} cnic {way}", physics.cnic_bytes_per_s, physics.message_ns) for way in ("in", "out")))
        for i in range(physics.engines)
    ]
    reads = ReadQueue(
        kernel, network, (storage, snic_in, dram), block_bytes=block_bytes, latency_ns=physics.read_latency_ns,
        concurrency=physics.read_concurrency, progress_blocks=physics.progress_blocks,
    )  # fmt: skip
    writes = ReadQueue(
        kernel, network, (dram, snic_out), block_bytes=block_bytes, latency_ns=0,
        concurrency=physics.read_concurrency, progress_blocks=0,
    )  # fmt: skip
    return SimNode(name, role, snic_in, snic_out, dram, cnics, reads, writes)
