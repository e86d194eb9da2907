"""NICs, RDMA devices, TCP settings and queueing disciplines of this host."""

import os
import shutil
import subprocess
from collections.abc import Iterable

from dualpath.core.hostprofile import Finding
from dualpath.doctor.system import System

TOPIC = "network"
QDISCS = ("htb", "pfifo")
LEAST_TCP_BUFFER = 4 << 20  # of one connection: 100 Gbit/s times 0.3 ms
FAST_MBIT_S = 10_000
JUMBO_MTU = 4096
_PROBE_DEADLINE_S = 10


def network_findings(system: System) -> list[Finding]:
    """All findings of this topic; looks for queueing disciplines only as root."""
    return [
        *nic_findings(system),
        *rdma_findings(system),
        buffer_finding(system, "tcp_rmem", "receive"),
        buffer_finding(system, "tcp_wmem", "send"),
        *core_findings(system),
        congestion_finding(system),
        qdisc_finding(probe_qdiscs()) if os.geteuid() == 0 else _not_root(),
    ]


def nic_findings(system: System) -> list[Finding]:
    """Speed and MTU of every device but loopback."""
    devices = [name for name in system.names("sys/class/net") if name not in ("lo", "bonding_masters")]
    if not devices:
        return [Finding(TOPIC, "NICs", "missing", "only loopback", "give this host a NIC: nodes on others need one")]
    return [_nic_finding(system, name) for name in devices]


def _nic_finding(system: System, name: str) -> Finding:
    folder = f"sys/class/net/{name}"
    speed, mtu = system.number(f"{folder}/speed") or -1, system.number(f"{folder}/mtu") or 0
    state = system.text(f"{folder}/operstate") or "unknown"
    value = f"{state}, {f'{speed} Mbit/s' if speed > 0 else 'speed not told'}, MTU {mtu}"
    if state == "up" and speed >= FAST_MBIT_S and mtu < JUMBO_MTU:
        mend = f"ip link set {name} mtu 9000, on switches and peers too: fewer packets for the same blocks"
        return Finding(TOPIC, name, "warning", value, mend)
    return Finding(TOPIC, name, "ok", value)


def rdma_findings(system: System) -> list[Finding]:
    """InfiniBand and RoCE devices with the state of their ports."""
    devices = system.names("sys/class/infiniband")
    if not devices:
        mend = "with an RDMA NIC: load its driver (mlx5_ib, irdma, ...) or pass /dev/infiniband in; else TCP carries KV"
        return [Finding(TOPIC, "RDMA devices", "missing", "none", mend)]
    ports = [(device, port) for device in devices for port in system.names(f"sys/class/infiniband/{device}/ports")]
    return [_port_finding(system, device, port) for device, port in ports]


def _port_finding(system: System, device: str, port: str) -> Finding:
    folder = f"sys/class/infiniband/{device}/ports/{port}"
    state, layer = system.text(f"{folder}/state").rpartition(" ")[2], system.text(f"{folder}/link_layer")
    name, value = f"{device}/{port}", f"{layer}, {state}, {system.text(f'{folder}/rate')}"
    if state == "ACTIVE":
        return Finding(TOPIC, name, "ok", value)
    mend = "bring the port up: cable, switch port" + (", subnet manager (opensm)" if layer == "InfiniBand" else "")
    return Finding(TOPIC, name, "warning", value, mend)


def buffer_finding(system: System, name: str, way: str) -> Finding:
    """The kernel grows a connection's buffer up to the third number."""
    fields = system.text(f"proc/sys/net/ipv4/{name}").split()
    if len(fields) != 3 or not fields[2].isdecimal():
        return Finding(TOPIC, name, "missing", "not told", f"mount /proc/sys: the {way} buffer's bound is not visible")
    if int(fields[2]) >= LEAST_TCP_BUFFER:
        return Finding(TOPIC, name, "ok", f"at most {fields[2]} bytes")
    mend = f'sysctl -w net.ipv4.{name}="{fields[0]} {fields[1]} 16777216": a fast link needs more on its way'
    return Finding(TOPIC, name, "warning", f"at most {fields[2]} bytes", mend)


def core_findings(system: System) -> list[Finding]:
    """Bounds of buffers that programs choose themselves, for information: the kernel chooses ours."""
    names = ("rmem_max", "wmem_max")
    return [Finding(TOPIC, name, "ok", system.text(f"proc/sys/net/core/{name}") or "not told") for name in names]


def congestion_finding(system: System) -> Finding:
    """How TCP shares a link."""
    used = system.text("proc/sys/net/ipv4/tcp_congestion_control")
    others = system.text("proc/sys/net/ipv4/tcp_available_congestion_control")
    return Finding(TOPIC, "TCP congestion control", "ok", f"{used or 'not told'} (available: {others or 'not told'})")


def probe_qdiscs() -> list[str] | None:
    """Queueing disciplines that work here, tried on the loopback device of a network namespace that ends with the
    process in it, whatever happens; None when there is no such namespace or no tc.
    """
    if not shutil.which("tc") or not shutil.which("unshare"):
        return None
    tries = "; ".join(f"tc qdisc replace dev lo root {name} 2>/dev/null && echo {name}" for name in QDISCS)
    try:
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", f"{tries}; echo end"],
            capture_output=True, text=True, timeout=_PROBE_DEADLINE_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = done.stdout.split()
    return found[:-1] if found[-1:] == ["end"] else None


def qdisc_finding(found: Iterable[str] | None) -> Finding:
    """Lanes on plain Ethernet and the testbed are made of these."""
    if found is None:
        mend = "install iproute2 and util-linux, and allow network namespaces: qos and testbed need tc"
        return Finding(TOPIC, "queueing disciplines", "missing", "cannot try them", mend)
    absent = [name for name in QDISCS if name not in found]
    if not absent:
        return Finding(TOPIC, "queueing disciplines", "ok", ", ".join(QDISCS))
    modules = " ".join(f"sch_{name}" for name in absent)
    mend = f"modprobe -a {modules} (package of the kernel's extra modules): qos and testbed shape links with them"
    return Finding(TOPIC, "queueing disciplines", "missing", f"no {', '.join(absent)}", mend)


def _not_root() -> Finding:
    mend = "run dualpath doctor as root once to know: lanes on plain Ethernet and the testbed need them"
    return Finding(TOPIC, "queueing disciplines", "warning", "not tried, needs root", mend)
