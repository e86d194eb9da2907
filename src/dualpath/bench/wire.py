"""What crossed the nodes' NICs, as the kernel counts it: classes of the queueing discipline, with segment headers."""

import subprocess
from collections.abc import Mapping

from dualpath.core.config import Config, Port
from dualpath.core.errors import ServiceError
from dualpath.qos.ethernet import ROOT
from dualpath.qos.tc import parse_classes

DIRECTIONS = ("snic_in", "snic_out", "cnic_in", "cnic_out")
TC_DEADLINE_S = 10.0


def wire_bytes(config: Config) -> dict[str, int]:
    """Bytes so far by node and direction ("p0 snic_in"), of all ports that the config names."""
    return {
        f"{node} {direction}": port_bytes(port)
        for node in config.nodes
        for direction in DIRECTIONS
        if (port := getattr(config.host_of(node), direction)) is not None
    }


def port_bytes(port: Port) -> int:
    """What left through a device so far: the class above all others. ServiceError when it has none."""
    command = [*port.launch, "tc", "-s", "class", "show", "dev", port.device]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TC_DEADLINE_S, check=True, text=True)
        return parse_classes(done.stdout)[ROOT].sent_bytes
    except (OSError, subprocess.SubprocessError, KeyError) as error:
        raise ServiceError(f"cannot read the counters of {port.device} ({' '.join(command)}): {error}") from None


def wire_between(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What a run moved."""
    return {port: after[port] - before[port] for port in before}


def of_direction(wire: Mapping[str, int], direction: str) -> list[int]:
    """One direction's bytes, by node."""
    return [count for port, count in wire.items() if port.endswith(f" {direction}")]
