"""Everything that `dualpath qos --check` looks at for a fabric, in order."""

from dualpath.qos import check_ethernet, check_rdma
from dualpath.qos.bursts import Contrast, Peer, contrast
from dualpath.qos.ethernet import KV_SHARE
from dualpath.qos.fabric import Fabric
from dualpath.qos.finding import Finding, judge
from dualpath.qos.tc import read_state


def check_host(
    fabric: Fabric, device: str, netdev: str, *, rate_bits_per_s: int | None, kv_share: float = KV_SHARE
) -> list[Finding]:
    """What the host says of itself, without sending anything."""
    if fabric is not Fabric.ETHERNET:
        return check_rdma.check(fabric, device, netdev)
    interface = judge("interface", True, check_ethernet.interface(netdev), "")
    return [interface, *check_ethernet.compare(netdev, read_state(netdev), rate_bits_per_s, kv_share)]


def check_by_measurement(fabric: Fabric, netdev: str, peer: Peer, seconds: float) -> tuple[list[Finding], Contrast]:
    """Which class counts marked packets, and round trips of bursts idle and under bulk data, to a burst server."""
    counted = check_ethernet.count_probes(netdev, peer, read_state) if fabric is Fabric.ETHERNET else []
    measured = contrast(peer, seconds)
    return [*counted, check_ethernet.judge_contrast(measured)], measured
