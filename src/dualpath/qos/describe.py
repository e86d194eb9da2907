"""The whole configuration for one fabric: switches or subnet manager, host, engines."""

from dualpath.core.errors import ConfigError
from dualpath.core.traffic import MARKS
from dualpath.core.units import format_bit_rate
from dualpath.qos import environment, ethernet, infiniband, roce
from dualpath.qos.fabric import Fabric
from dualpath.qos.section import Section, command_lines

SOFTWARE_LIMIT = 25_000_000_000  # above it one queueing discipline in software holds the line back


def describe(fabric: Fabric, device: str, netdev: str, rate_bits_per_s: int, kv_share: float) -> list[Section]:
    """Sections for `device` (RDMA) or `netdev` (network interface), the latter alone on plain Ethernet."""
    if not 0 < kv_share < 1:
        raise ConfigError(f"--kv-share must be between 0 and 1, not {kv_share}; the paper gives about 0.01")
    if fabric is Fabric.ETHERNET:
        return [*_ethernet(netdev, rate_bits_per_s, kv_share), *environment.sections(fabric, netdev)]
    own = infiniband.sections(device) if fabric is Fabric.INFINIBAND else roce.sections(netdev, device, kv_share)
    return [*own, *environment.sections(fabric, device)]


def _ethernet(netdev: str, rate: int, kv_share: float) -> list[Section]:
    classes = ethernet.lane_classes(rate, kv_share=kv_share)
    why = [
        f"Three classes on {netdev}, told apart by DSCP; each may use what others leave of {format_bit_rate(rate)}:",
        *(
            f"  {lane.traffic} (DSCP {MARKS[lane.traffic].dscp}): class {lane.class_id}, prio {lane.prio}, "
            f"guaranteed {format_bit_rate(lane.rate_bits_per_s)}"
            for lane in classes
        ),
        "Give a rate slightly below the line's own, so that queues stand here and not in the NIC. Needs root; replaces",
        f"what was there. Undo: tc qdisc del dev {netdev} root",
    ]
    if rate > SOFTWARE_LIMIT:
        why.append(
            "At this rate one queue in software costs too much: use the NIC's classes (dcb, as for RoCE) instead."
        )
    commands = ethernet.htb_commands(netdev, rate, kv_share=kv_share)
    segments = [
        "Keeps a packet of bulk data from holding the line for long (100 us, from 480 Mbit/s up). Costs",
        "processor time; of use where bursts wait in the NIC's own queue, not in this one.",
    ]
    return [
        Section("Host: classes by tc", why, command_lines(commands)),
        Section("Host: short segments (optional)", segments, command_lines(ethernet.segment_commands(netdev, rate))),
        Section(
            "Switch",
            ["Where a switch can be the bottleneck, let it trust DSCP and serve in the same order; no PFC is needed."],
            [f"# DSCP {mark.dscp}: {name}" for name, mark in MARKS.items()],
        ),
    ]
