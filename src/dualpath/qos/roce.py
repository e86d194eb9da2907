"""Lanes on RoCE: DSCP selects a priority, a priority a traffic class; lossless by PFC (paper section 4).

Priorities are the upper three bits of the DSCP, which is what NICs and switches in DSCP mode assume anyway.
"""

import json

from dualpath.core.traffic import MARKS, Traffic
from dualpath.qos.section import Section

PRIORITIES = 8
CNP_DSCP = 48  # congestion notifications (DCQCN), by custom strict on priority 6
CNP_PRIORITY = 6
OTHER_PERCENT = 1  # for what nobody marked
SWITCH_FILE = "sonic-qos.json"
_MAP = "DUALPATH"


def priority(traffic: Traffic) -> int:
    """The 802.1p priority, also the hardware traffic class, of a class of traffic."""
    return MARKS[traffic].dscp >> 3


MODEL_PRIORITY = priority(Traffic.MODEL)
KV_PRIORITY = priority(Traffic.BLOCKS)
LOSSLESS = sorted({priority(traffic) for traffic in Traffic})


def shares(kv_share: float) -> list[int]:
    """Percent of the line guaranteed to each hardware traffic class; the strict one has none."""
    kv = min(max(round(100 * kv_share), 1), 98)
    percents = [0] * PRIORITIES
    percents[0], percents[KV_PRIORITY], percents[MODEL_PRIORITY] = OTHER_PERCENT, kv, 100 - OTHER_PERCENT - kv
    return percents


def priority_to_class() -> list[int]:
    """Hardware traffic class of each priority: those that nobody uses share class 0."""
    return [number if number in (*LOSSLESS, CNP_PRIORITY) else 0 for number in range(PRIORITIES)]


def sections(netdev: str, rdma_device: str, kv_share: float) -> list[Section]:
    """Host (two tools, the same meaning), RDMA connection manager, switch."""
    table = [f"DSCP {mark.dscp:2} ({name}) -> priority {priority(name)}, lossless" for name, mark in MARKS.items()]
    table.append(f"DSCP {CNP_DSCP} (congestion notifications) -> priority {CNP_PRIORITY}, strict, lossy")
    table.append(f"all else -> traffic class 0, lossy; shares while all are busy: {_named_shares(kv_share)}")
    kernel = ["With the kernel's own tool (iproute2), where the driver offers DCB. Needs DCBX in host mode.", *table]
    vendor = ["Or with NVIDIA's tool (MLNX_OFED, DOCA); the same meaning. Do one of the two."]
    manager = [
        "A traffic class is DSCP times 4; add 2 (ECN-capable) wherever the NIC does not set it itself.",
        "Connections by rdma_cm that carry no mark of their own go with the least urgent class.",
    ]
    switch = [
        "Every switch port on the path must say the same; SONiC's tables for one port, others in their own words.",
        "Buffers with headroom for the lossless priorities and ECN are the switch's own matter: follow its RoCE guide.",
    ]
    return [
        Section("Host: DSCP, PFC and shares (ETS) by dcb", kernel, dcb_lines(netdev, kv_share)),
        Section("Host: the same by mlnx_qos", vendor, ["# " + line for line in mlnx_lines(netdev, kv_share)]),
        Section("Host: default marks of RDMA connections", manager, default_lines(rdma_device)),
        Section("Switch", switch, sonic_json(kv_share).splitlines(), file=SWITCH_FILE),
    ]


def dcb_lines(netdev: str, kv_share: float) -> list[str]:
    """iproute2's dcb commands."""
    dscp = [f"{mark.dscp}:{priority(name)}" for name, mark in MARKS.items()]
    pfc = [f"{number}:{'on' if number in LOSSLESS else 'off'}" for number in range(PRIORITIES)]
    tsa = [f"{number}:{_algorithm(number)}" for number in range(PRIORITIES)]
    bandwidth = [f"{number}:{percent}" for number, percent in enumerate(shares(kv_share))]
    classes = [f"{number}:{group}" for number, group in enumerate(priority_to_class())]
    ets = f"tc-tsa {' '.join(tsa)} tc-bw {' '.join(bandwidth)} prio-tc {' '.join(classes)}"
    return [
        f"dcb app replace dev {netdev} dscp-prio {' '.join(dscp)} {CNP_DSCP}:{CNP_PRIORITY}",
        f"dcb pfc set dev {netdev} prio-pfc {' '.join(pfc)}",
        f"dcb ets set dev {netdev} {ets}",
    ]


def mlnx_lines(netdev: str, kv_share: float) -> list[str]:
    """The same for NVIDIA's mlnx_qos."""
    pfc = ",".join(str(int(number in LOSSLESS)) for number in range(PRIORITIES))
    classes = ",".join(map(str, priority_to_class()))
    tsa = ",".join(_algorithm(number) for number in range(PRIORITIES))
    bandwidth = ",".join(map(str, shares(kv_share)))
    return [
        f"mlnx_qos -i {netdev} --trust dscp",
        f"mlnx_qos -i {netdev} --pfc {pfc}",
        f"mlnx_qos -i {netdev} --prio_tc {classes} --tsa {tsa} --tcbw {bandwidth}",
    ]


def default_lines(rdma_device: str) -> list[str]:
    """Marks for connections that choose none: the least urgent ones, so that nothing rises by accident."""
    value = MARKS[Traffic.BLOCKS].traffic_class
    return [
        f"cma_roce_tos -d {rdma_device} -t {value}",
        "# Leave /sys/class/infiniband/DEVICE/tc/1/traffic_class alone: it overrides the marks of every connection.",
    ]


def sonic_json(kv_share: float, port: str = "Ethernet0") -> str:
    """Tables of SONiC's CONFIG_DB for one port: DSCP to class, class to queue, PFC, schedulers."""
    percents = shares(kv_share)
    weighted = [number for number in range(PRIORITIES) if percents[number]]
    dscp = {str(code): "0" for code in range(64)}
    dscp |= {str(mark.dscp): str(priority(name)) for name, mark in MARKS.items()}
    dscp[str(CNP_DSCP)] = str(CNP_PRIORITY)
    schedulers = {f"dualpath.{number}": {"type": "DWRR", "weight": str(percents[number])} for number in weighted}
    schedulers[f"dualpath.{CNP_PRIORITY}"] = {"type": "STRICT"}
    one_to_one = {str(number): str(number) for number in range(PRIORITIES)}
    tables = {
        "DSCP_TO_TC_MAP": {_MAP: dscp},
        "TC_TO_QUEUE_MAP": {_MAP: one_to_one},
        "TC_TO_PRIORITY_GROUP_MAP": {_MAP: {k: k if int(k) in LOSSLESS else "0" for k in one_to_one}},
        "MAP_PFC_PRIORITY_TO_QUEUE": {_MAP: one_to_one},
        "SCHEDULER": schedulers,
        "QUEUE": {f"{port}|{name.partition('.')[2]}": {"scheduler": name} for name in schedulers},
        "PORT_QOS_MAP": {
            port: {
                "dscp_to_tc_map": _MAP,
                "tc_to_queue_map": _MAP,
                "tc_to_pg_map": _MAP,
                "pfc_to_queue_map": _MAP,
                "pfc_enable": ",".join(map(str, LOSSLESS)),
            }
        },
    }
    lines = [f"{json.dumps(name)}: {json.dumps(table)}" for name, table in tables.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _algorithm(traffic_class: int) -> str:
    return "strict" if traffic_class == CNP_PRIORITY else "ets"


def _named_shares(kv_share: float) -> str:
    percents = shares(kv_share)
    return f"model {percents[MODEL_PRIORITY]}%, KV {percents[KV_PRIORITY]}%, other {percents[0]}%"
