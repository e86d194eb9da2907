"""Lanes on InfiniBand: what the subnet manager (opensm) must tell every port (paper section 4).

A message's service level (SL) selects a virtual lane (VL) on each port. Ports serve their high-priority arbitration
table until `high_limit` is used up, then one entry of the low-priority table.
"""

from dualpath.core.traffic import MARKS, Traffic
from dualpath.qos.section import Section

KV_LANE = MARKS[Traffic.BLOCKS].service_level
MODEL_LANE = MARKS[Traffic.MODEL].service_level
LANES = 4
HIGH_LIMIT = 240
VLARB_HIGH = "0:192,1:192,2:0,3:192"
VLARB_LOW = "0:192,1:192,2:64,3:192"
SL2VL = ",".join(str(level if level < LANES else 0) for level in range(16))
CONFIG_FILE = "opensm-qos.conf"

_OPTIONS = {
    "qos": "TRUE",
    "qos_max_vls": str(LANES),
    "qos_high_limit": str(HIGH_LIMIT),
    "qos_vlarb_high": VLARB_HIGH,
    "qos_vlarb_low": VLARB_LOW,
    "qos_sl2vl": SL2VL,
}


def sections(device: str) -> list[Section]:
    """What to tell opensm, and how to see it arrive at the port of `device`."""
    why = [
        "Append to opensm.conf of every subnet manager and restart them.",
        f"qos_max_vls: {LANES} data lanes, which all current switches and NICs have.",
        f"qos_high_limit: {HIGH_LIMIT} x 4 KiB from the high table, then one turn of the low one; 255 would starve KV.",
        f"qos_vlarb_high: lanes 0, 1 and 3 in equal turns of 192 x 64 bytes; lane {KV_LANE} (KV) has no turn here.",
        "qos_vlarb_low: the KV lane's only turns, of 64 x 64 bytes: about 1% while others are busy, all when idle.",
        f"qos_sl2vl: service level n on lane n (model execution {MODEL_LANE}, KV {KV_LANE}); others on lane 0.",
    ]
    lines = [f"{name} {value}" for name, value in _OPTIONS.items()]
    see = ["smpquery comes with infiniband-diags; the tables must show the values above on every port of the path."]
    return [
        Section("Subnet manager", why, lines, file=CONFIG_FILE),
        Section("See that it arrived", see, [f"smpquery -C {device} -D {query} 0" for query in ("sl2vl", "vlarb")]),
    ]
