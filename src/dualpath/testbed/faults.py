"""Faults of a testbed's networks."""

import time
from collections.abc import Callable

from dualpath.core.errors import ConfigError
from dualpath.testbed.layout import STORAGE, SWITCH, Layout
from dualpath.testbed.network import run

NICS = ("snic", "cnic")


def cut(layout: Layout, node: str, nic: str, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Pull the cable of a node's NIC for some seconds: at the switch, so that the node keeps its addresses."""
    if node not in layout.nodes or nic not in NICS:
        raise ConfigError(f"no NIC {node} {nic}; there are {', '.join(layout.nodes)} with {' and '.join(NICS)}")
    switch, port = (STORAGE, node) if nic == "snic" else (SWITCH, f"c-{node}")
    link = ["ip", "-n", layout.namespace(switch), "link", "set", port]
    run([*link, "down"])
    try:
        sleep(seconds)
    finally:
        run([*link, "up"])
