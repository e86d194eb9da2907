"""What the kernel says of a device's classes and filters: `tc` read and parsed."""

import json
import re
import subprocess
from typing import NamedTuple

from dualpath.core.errors import ConfigError, ServiceError

_TIMEOUT_S = 5.0
_UNITS = {"bit": 1, "Kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9, "Tbit": 10**12}
_CLASS = re.compile(
    r"class htb (?P<id>\S+) (?:root|parent \S+)(?: leaf \S+)?(?: prio (?P<prio>\d+))?"
    r"(?: quantum \d+)? rate (?P<rate>\d+)(?P<rate_unit>[KMGT]?bit) ceil (?P<ceil>\d+)(?P<ceil_unit>[KMGT]?bit)"
    r".*?\n Sent (?P<sent>\d+) bytes",
    re.DOTALL,
)


class ClassState(NamedTuple):
    """A class of an HTB tree."""

    rate_bits_per_s: int
    ceil_bits_per_s: int
    prio: int
    sent_bytes: int


class DeviceState(NamedTuple):
    """What shapes the traffic of one device."""

    qdisc: str  # kind at the root
    default: str  # class id of what no filter names; "" if the root is not HTB
    classes: dict[str, ClassState]
    dscp: dict[int, str]  # class id that IPv4 packets with a DSCP go to


def read_state(device: str) -> DeviceState:
    """The state of `device`. ConfigError if it does not exist, ServiceError if tc does not run."""
    qdiscs = run_tc("-j", "qdisc", "show", "dev", device)
    classes = run_tc("-s", "class", "show", "dev", device)
    filters = run_tc("-j", "filter", "show", "dev", device)
    qdisc, default = parse_qdiscs(qdiscs)
    return DeviceState(qdisc, default, parse_classes(classes), parse_filters(filters))


def run_tc(*arguments: str) -> str:
    """What tc prints."""
    try:
        done = subprocess.run(["tc", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError:
        raise ServiceError("tc is missing on this host; install iproute2") from None
    except subprocess.TimeoutExpired:
        raise ServiceError(f"tc {' '.join(arguments)} gave no answer within {_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise ConfigError(f"tc {' '.join(arguments)}: {done.stderr.strip()}; name a network device with --device")
    return done.stdout


def parse_qdiscs(text: str) -> tuple[str, str]:
    """Kind of the root queueing discipline, and its default class if it is HTB."""
    for qdisc in json.loads(text or "[]"):
        if qdisc.get("root"):
            default = qdisc.get("options", {}).get("default")
            major = qdisc["handle"].partition(":")[0]
            return qdisc["kind"], f"{major}:{int(default, 16):x}" if default else ""
    return "none", ""


def parse_classes(text: str) -> dict[str, ClassState]:
    """HTB classes by id, from the text form: tc 6.1 has no JSON for them."""
    return {
        match["id"]: ClassState(
            int(match["rate"]) * _UNITS[match["rate_unit"]],
            int(match["ceil"]) * _UNITS[match["ceil_unit"]],
            int(match["prio"] or 0),
            int(match["sent"]),
        )
        for match in _CLASS.finditer(text)
    }


def parse_filters(text: str) -> dict[int, str]:
    """Class id by DSCP, from u32 filters that look at the whole DSCP of IPv4 packets and nothing else."""
    found: dict[int, str] = {}
    for entry in json.loads(text or "[]"):
        options = entry.get("options", {})
        match = options.get("match", {})
        if entry["protocol"] == "ip" and options.get("flowid") and match.get("mask") == "fc0000" and not match["off"]:
            found.setdefault(int(match["value"], 16) >> 18, options["flowid"])
    return found
