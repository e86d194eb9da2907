"""What shares the compute network, and how each class of it is marked (paper section 4): one table for sockets, RDMA,
`dualpath qos` and the testbed.

Model execution (collectives, expert dispatch) goes first; KV-cache traffic takes what is left, and within it layer
streams, which gate computation, go before background copies of blocks.
"""

import enum
from typing import NamedTuple


class Traffic(enum.StrEnum):
    """Classes, the most urgent first."""

    MODEL = "model"  # not ours: collectives of the engines
    LAYERS = "layers"  # layer blocks to a prefill engine, new KV to the decode node
    BLOCKS = "blocks"  # full blocks between arenas


class Mark(NamedTuple):
    """How packets of a class are recognised."""

    dscp: int  # IP and RoCE: the upper six bits of the traffic class
    priority: int  # SO_PRIORITY, seen by the host's own queueing discipline
    service_level: int  # InfiniBand: selects the virtual lane; 2 is the paper's KV lane

    @property
    def traffic_class(self) -> int:
        """The byte in the IP header, as IP_TOS and IB_TRAFFIC_CLASS take it."""
        return self.dscp << 2


MARKS = {
    Traffic.MODEL: Mark(dscp=26, priority=6, service_level=1),
    Traffic.LAYERS: Mark(dscp=12, priority=2, service_level=2),
    Traffic.BLOCKS: Mark(dscp=10, priority=1, service_level=2),
}
