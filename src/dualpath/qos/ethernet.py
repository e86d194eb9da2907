"""Lanes on plain Ethernet: what to tell a host's kernel (tc, ip), as argument lists.

One HTB tree on the device: every class may borrow the whole rate, the model class is guaranteed nearly all of it
(paper section 4: about 99% for model execution, a little for KV traffic against starvation). Packets are told apart
by DSCP. Only HTB, pfifo and cls_u32 are needed.
"""

from typing import NamedTuple

from dualpath.core.errors import ConfigError
from dualpath.core.traffic import MARKS, Traffic

MTU = 1500
ROOT = "1:1"
CLASS_IDS = {Traffic.MODEL: "1:10", Traffic.LAYERS: "1:20", Traffic.BLOCKS: "1:30"}
UNMARKED = Traffic.BLOCKS  # what nobody marked goes with the least urgent class
KV_SHARE = 0.01  # of the rate guaranteed to KV traffic, one half to each of its classes (paper: about 99% to models)
LEAST_RATE = 1_000_000  # below it a single packet holds the line for more than 10 ms
BURST_S = 0.004  # what a timer of a busy host that wakes late may make up for; a scheduler tick
LEAF_PACKETS = 1000
SEGMENT_S = 100e-6  # one packet of another class may hold the line so long
LEAST_SEGMENT_PACKETS = 4  # with fewer, bursts were seen to stall for 2 ms now and then (docs/design/lanes.md)
LARGEST_SEGMENT_BYTES = 65536
_DSCP_MASK = "0xfc"


class LaneClass(NamedTuple):
    """One class below the root of the tree."""

    traffic: Traffic
    class_id: str
    rate_bits_per_s: int  # guaranteed
    ceil_bits_per_s: int
    prio: int  # 0 is served first


def lane_classes(rate_bits_per_s: int, *, lanes: bool = True, kv_share: float = KV_SHARE) -> list[LaneClass]:
    """The classes of a line, most urgent first; without lanes one class takes all. ConfigError for a rate too low."""
    if rate_bits_per_s < LEAST_RATE:
        raise ConfigError(f"a rate of {rate_bits_per_s} bit/s is below {LEAST_RATE}; give for example --rate 800Mbit/s")
    if not 0 < kv_share < 1:
        raise ConfigError(f"the KV share must be between 0 and 1, not {kv_share}; the paper gives about 0.01")
    if not lanes:
        return [LaneClass(UNMARKED, CLASS_IDS[UNMARKED], rate_bits_per_s, rate_bits_per_s, 0)]
    shares = {Traffic.MODEL: 1 - kv_share, Traffic.LAYERS: kv_share / 2, Traffic.BLOCKS: kv_share / 2}
    return [
        LaneClass(traffic, CLASS_IDS[traffic], round(rate_bits_per_s * shares[traffic]), rate_bits_per_s, prio)
        for prio, traffic in enumerate(Traffic)
    ]


def htb_commands(
    device: str, rate_bits_per_s: int, *, lanes: bool = True, kv_share: float = KV_SHARE
) -> list[list[str]]:
    """tc commands that shape what `device` sends; they replace a tree that is there. Rates are on the wire."""
    classes = lane_classes(rate_bits_per_s, lanes=lanes, kv_share=kv_share)
    default = CLASS_IDS[UNMARKED].partition(":")[2]
    commands = [
        ["tc", "qdisc", "replace", "dev", device, "root", "pfifo"],  # an HTB tree cannot be changed: it goes as a whole
        ["tc", "qdisc", "replace", "dev", device, "root", "handle", "1:", "htb", "default", default],
        _class(device, "1:", ROOT, rate_bits_per_s, rate_bits_per_s, []),
    ]
    for lane in classes:
        prio = ["prio", str(lane.prio)]
        commands.append(_class(device, ROOT, lane.class_id, lane.rate_bits_per_s, lane.ceil_bits_per_s, prio))
        leaf = f"{lane.class_id.partition(':')[2]}:"
        queue = ["parent", lane.class_id, "handle", leaf, "pfifo", "limit", str(LEAF_PACKETS)]
        commands.append(["tc", "qdisc", "replace", "dev", device, *queue])
    if lanes:
        commands += _filters(device)
    return commands


def segment_bytes(rate_bits_per_s: int, mtu: int = MTU) -> int:
    """The largest packet that the stack may hand down unsegmented: 100 us of the line, at least four packets."""
    return min(max(int(rate_bits_per_s / 8 * SEGMENT_S), LEAST_SEGMENT_PACKETS * mtu), LARGEST_SEGMENT_BYTES)


def segment_commands(device: str, rate_bits_per_s: int, mtu: int = MTU) -> list[list[str]]:
    """Commands that keep super-packets (TSO, GSO) short; connections made before keep their old size."""
    return [["ip", "link", "set", "dev", device, "gso_max_size", str(segment_bytes(rate_bits_per_s, mtu))]]


def _class(device: str, parent: str, class_id: str, rate: int, ceil: int, more: list[str]) -> list[str]:
    """Bursts allow for late timers only; the quantum is one frame, so borrowers of one prio take fair turns."""
    burst = str(max(int(ceil / 8 * BURST_S), 2 * MTU))
    return [
        *("tc", "class", "replace", "dev", device, "parent", parent, "classid", class_id, "htb"),
        *("rate", f"{rate}bit", "ceil", f"{ceil}bit", "burst", burst, "cburst", burst, "quantum", str(2 * MTU)),
        *more,
    ]


def _filters(device: str) -> list[list[str]]:
    """By DSCP, for both IP versions. Neighbour look-ups (ARP) must not wait behind bulk data."""
    commands = []
    for number, traffic in enumerate(Traffic, 1):
        mark = f"{MARKS[traffic].traffic_class:#04x}"
        for pref, protocol, match in (
            (number, "ip", ["ip", "dsfield"]),
            (number + 10, "ipv6", ["ip6", "priority"]),
        ):
            commands.append(_filter(device, pref, protocol, [*match, mark, _DSCP_MASK], CLASS_IDS[traffic]))
    commands.append(_filter(device, 20, "arp", ["u32", "0", "0"], CLASS_IDS[Traffic.MODEL]))
    return commands


def _filter(device: str, pref: int, protocol: str, match: list[str], class_id: str) -> list[str]:
    where = ["parent", "1:", "protocol", protocol, "pref", str(pref)]
    return ["tc", "filter", "add", "dev", device, *where, "u32", "match", *match, "flowid", class_id]
