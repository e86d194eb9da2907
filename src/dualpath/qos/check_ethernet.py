"""Is a host on plain Ethernet set up as `dualpath qos` prints? Compared with what the kernel says, and measured."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.core.traffic import MARKS, Traffic
from dualpath.core.units import format_bit_rate
from dualpath.qos.bursts import Contrast, Peer
from dualpath.qos.ethernet import CLASS_IDS, KV_SHARE, ROOT, UNMARKED, LaneClass, lane_classes
from dualpath.qos.finding import Finding, judge
from dualpath.qos.tc import DeviceState
from dualpath.qos.wire import mark

RATE_TOLERANCE = 0.01
MOST_P99_RATIO = 2.0
PROBE_DATAGRAMS = 200
PROBE_BYTES = 1000
_COUNT_WITHIN_S = 2.0
_SYS_NET = Path("/sys/class/net")


def compare(device: str, state: DeviceState, rate_bits_per_s: int | None, kv_share: float = KV_SHARE) -> list[Finding]:
    """Findings on classes and filters; without a rate the one of the tree's root is taken as meant."""
    mend = f"run the commands of: dualpath qos --fabric ethernet --device {device} --rate RATE"
    root = state.classes.get(ROOT)
    if state.qdisc != "htb" or root is None:
        return [judge("classes", False, f"the root of {device} is {state.qdisc}, not our HTB tree", mend)]
    rate = rate_bits_per_s or root.rate_bits_per_s
    findings = [
        judge("line", _close(root.rate_bits_per_s, rate), f"shaped to {format_bit_rate(root.rate_bits_per_s)}", mend),
        judge("unmarked packets", state.default == CLASS_IDS[UNMARKED], f"go to class {state.default or 'none'}", mend),
    ]
    for lane in lane_classes(rate, kv_share=kv_share):
        findings += [_class(lane, state, mend), _filter(lane, state, mend)]
    return findings


def _class(lane: LaneClass, state: DeviceState, mend: str) -> Finding:
    found = state.classes.get(lane.class_id)
    if found is None:
        return judge(f"class {lane.traffic}", False, f"there is no class {lane.class_id}", mend)
    good = (
        _close(found.rate_bits_per_s, lane.rate_bits_per_s)
        and _close(found.ceil_bits_per_s, lane.ceil_bits_per_s)
        and found.prio == lane.prio
    )
    text = (
        f"guaranteed {format_bit_rate(found.rate_bits_per_s)}, at most {format_bit_rate(found.ceil_bits_per_s)}, "
        f"prio {found.prio}"
    )
    return judge(f"class {lane.traffic}", good, text, mend)


def _filter(lane: LaneClass, state: DeviceState, mend: str) -> Finding:
    dscp = MARKS[lane.traffic].dscp
    where = state.dscp.get(dscp)
    found = f"DSCP {dscp} goes to class {where}" if where else f"no filter for DSCP {dscp}"
    return judge(f"filter {lane.traffic}", where == lane.class_id, found, mend)


def _close(found: int, wanted: int) -> bool:
    return abs(found - wanted) <= RATE_TOLERANCE * wanted


def interface(device: str) -> str:
    """The device's MTU and state, in words; ConfigError if there is no such device."""
    try:
        mtu, state = ((_SYS_NET / device / name).read_text().strip() for name in ("mtu", "operstate"))
    except OSError as error:
        raise ConfigError(f"no network device {device}: {error.strerror}; name one with --device") from None
    return f"{device} is {state}, MTU {mtu}"


def count_probes(device: str, peer: Peer, read: Callable[[str], DeviceState]) -> list[Finding]:
    """Send marked datagrams to the peer and look which class counted them; nobody needs to receive them."""
    return [_probe(device, peer, traffic, read) for traffic in Traffic]


def _probe(device: str, peer: Peer, traffic: Traffic, read: Callable[[str], DeviceState]) -> Finding:
    class_id = CLASS_IDS[traffic]
    before = _sent(read(device), class_id)
    _send_datagrams(peer, traffic)
    least = PROBE_DATAGRAMS * PROBE_BYTES
    end = time.monotonic() + _COUNT_WITHIN_S
    while (counted := _sent(read(device), class_id) - before) < least and time.monotonic() < end:
        time.sleep(0.05)
    mend = f"is {peer[0]} reached over {device}? Do the filters stand? (tc filter show dev {device})"
    found = f"class {class_id} counted {counted} bytes of {least} sent"
    return judge(f"packets {traffic}", counted >= least, found, mend)


def _sent(state: DeviceState, class_id: str) -> int:
    return state.classes[class_id].sent_bytes if class_id in state.classes else 0


def _send_datagrams(peer: Peer, traffic: Traffic) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(*peer, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as sender:
        mark(sender, traffic)
        for _ in range(PROBE_DATAGRAMS):
            sender.sendto(bytes(PROBE_BYTES), address)


def judge_contrast(measured: Contrast) -> Finding:
    """Do bursts keep their pace under bulk data (at most twice the idle p99)?"""
    idle, loaded = measured.idle, measured.loaded
    found = (
        f"p50 {idle.p50_s * 1e6:.0f} us idle, {loaded.p50_s * 1e6:.0f} us loaded; "
        f"p99 {idle.p99_s * 1e6:.0f} us idle, {loaded.p99_s * 1e6:.0f} us loaded: {measured.p99_ratio:.2f} times"
    )
    if not idle.realtime:
        found += " (without realtime priority: delays of this host's own scheduler are included)"
    mend = "lanes are missing on this host, the peer or a switch between them; if all stand, try the short segments"
    return judge("round trips", measured.p99_ratio <= MOST_P99_RATIO, found, mend)
