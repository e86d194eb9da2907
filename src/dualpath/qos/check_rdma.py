"""Is a host on InfiniBand or RoCE set up as `dualpath qos` prints? What sysfs and the vendor's tools say."""

import json
import re
import shutil
import subprocess
from pathlib import Path

from dualpath.core.traffic import MARKS, Traffic
from dualpath.qos import infiniband, roce
from dualpath.qos.fabric import Fabric
from dualpath.qos.finding import Finding, Verdict, judge

SYS_INFINIBAND = Path("/sys/class/infiniband")
_TIMEOUT_S = 5.0
_LAYERS = {Fabric.INFINIBAND: "InfiniBand", Fabric.ROCE: "Ethernet"}


def check(fabric: Fabric, device: str, netdev: str, root: Path = SYS_INFINIBAND) -> list[Finding]:
    """Findings for one RDMA device; what this host has no means to look at is UNKNOWN, never OK."""
    ports = sorted((root / device / "ports").glob("*"))
    if not ports:
        devices = ", ".join(sorted(path.name for path in root.glob("*"))) or "none"
        mend = "run this on a host of the fabric, and name its RDMA device with --device"
        text = f"cannot be checked here: no device {device} (RDMA devices of this host: {devices})"
        return [Finding("device", Verdict.UNKNOWN, text, mend)]
    findings = [_link(fabric, port) for port in ports]
    if fabric is Fabric.INFINIBAND:
        return [*findings, _sl2vl(device)]
    return [*findings, _default_mark(root / device), *_dcb(netdev)]


def _link(fabric: Fabric, port: Path) -> Finding:
    layer, state = _read(port / "link_layer"), _read(port / "state")
    good = layer == _LAYERS[fabric] and state.endswith("ACTIVE")
    mend = f"bring the port up, or describe its fabric with --fabric (this is for {_LAYERS[fabric]})"
    return judge(f"port {port.name}", good, f"link layer {layer}, state {state}", mend)


def _sl2vl(device: str) -> Finding:
    text = _run("smpquery", "-C", device, "-D", "sl2vl", "0")
    if text is None:
        return _unknown("service levels", "smpquery does not run", "install infiniband-diags and run this as root")
    wanted = [int(lane) for lane in infiniband.SL2VL.split(",")]
    found = parse_sl2vl(text)
    mend = f"merge the lines of `dualpath qos` into opensm.conf and restart opensm (wanted {wanted})"
    return judge("service levels", found == wanted, f"levels 0..15 on lanes {found}", mend)


def parse_sl2vl(text: str) -> list[int]:
    """Lanes of service levels 0..15 from the last table row of `smpquery sl2vl`; empty when there is none."""
    rows = [line.rpartition(":")[2] for line in text.splitlines() if line.count("|") >= 16]
    rows = [row for row in rows if re.fullmatch(r"[\s|\d]+", row)]
    return [int(lane) for lane in re.findall(r"\d+", rows[-1])] if rows else []


def _default_mark(device: Path) -> Finding:
    """A device-wide traffic class overrides every mark, so it must not be there while lanes are in use."""
    text = _read(device / "tc" / "1" / "traffic_class")
    forced = re.search(r"\d+", text)
    good = forced is None or int(forced[0]) == 0
    return judge(
        "marks of connections",
        good,
        f"a traffic class of {text} is forced on all connections" if not good else "each connection keeps its own",
        f"echo 0 > {device}/tc/1/traffic_class",
    )


def _dcb(netdev: str) -> list[Finding]:
    """PFC and DSCP map through the kernel's own interface."""
    mend = f"run the dcb or mlnx_qos commands of: dualpath qos --fabric roce --device RDMA:{netdev}"
    pfc = _run("dcb", "-j", "pfc", "show", "dev", netdev, "prio-pfc")
    app = _run("dcb", "-j", "-N", "app", "show", "dev", netdev, "dscp-prio")
    if pfc is None or app is None:
        why = f"dcb does not run on {netdev!r}"
        return [
            _unknown("PFC and DSCP", why, "install iproute2 (dcb), use a driver with DCB, or look with mlnx_qos -i")
        ]
    lossless = parse_pfc(pfc)
    priorities = parse_dscp(app)
    wanted = {MARKS[traffic].dscp: roce.priority(traffic) for traffic in Traffic}
    return [
        judge("lossless priorities", lossless == roce.LOSSLESS, f"PFC on for {lossless}", mend),
        judge("priorities by DSCP", wanted.items() <= priorities.items(), f"{priorities}", mend),
    ]


def parse_pfc(text: str) -> list[int]:
    """Priorities with flow control, from `dcb -j pfc show`."""
    return [number for number, on in enumerate(json.loads(text).get("prio_pfc", [])) if on in (True, "on", 1)]


def parse_dscp(text: str) -> dict[int, int]:
    """Priority by DSCP, from `dcb -j -N app show`."""
    return {int(dscp): int(priority) for dscp, priority in json.loads(text).get("dscp_prio", [])}


def _unknown(subject: str, found: str, mend: str) -> Finding:
    return Finding(subject, Verdict.UNKNOWN, f"cannot be checked here: {found}", mend)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _run(*command: str) -> str | None:
    """What a tool prints; None if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None
