"""What a testbed consists of, as data: hosts, addresses, and the commands that make and shape its networks. Pure.

```
  storage host --bridge--+-- snic of p0     every node: snic on the storage network, cnic on the compute
                         +-- snic of d0     network (a switch of its own), mgmt on the management network
                         +-- control        (with control, for the scheduler's and the gateway's messages)
```

A NIC's outgoing direction is shaped on the node's device, the incoming one on the switch's port that faces the node, as
a real switch does. The management network and control's way to storage are not shaped: no KV passes there.
"""

from typing import NamedTuple

from dualpath.core.config import CONTROL, parse_topology
from dualpath.qos.ethernet import htb_commands

STORAGE, SWITCH = "storage", "switch"
PREFIX = "dp"
S3_PORT, SCHEDULER_PORT = 9000, 7000
_STORAGE_NET, _COMPUTE_NET, _MANAGEMENT_NET = "10.77.1", "10.77.2", "10.77.3"
STORAGE_ADDRESS = f"{_STORAGE_NET}.1"
BITS_PER_BYTE = 8
MTU = 1500

Command = list[str]


class Layout(NamedTuple):
    """One testbed. Rates in bytes a second; None = not shaped."""

    name: str
    topology: str
    snic_bytes_per_s: int | None
    cnic_bytes_per_s: int | None
    lanes: bool = True

    @property
    def nodes(self) -> list[str]:
        """p0, p1, ..., d0, ..."""
        prefill, decode = parse_topology(self.topology)
        return [f"p{i}" for i in range(prefill)] + [f"d{i}" for i in range(decode)]

    @property
    def hosts(self) -> list[str]:
        """All hosts; every one is a namespace."""
        return [STORAGE, SWITCH, CONTROL, *self.nodes]

    def namespace(self, host: str) -> str:
        """The namespace's name under /run/netns."""
        return f"{PREFIX}-{self.name}-{host}"

    def _number(self, host: str) -> int:
        return 10 + [CONTROL, *self.nodes].index(host)

    def compute_address(self, node: str) -> str:
        """The node's address on the compute network."""
        return f"{_COMPUTE_NET}.{self._number(node)}"

    def management_address(self, host: str) -> str:
        """The host's address on the management network."""
        return f"{_MANAGEMENT_NET}.{self._number(host)}"

    def storage_address(self, host: str) -> str:
        """The host's address on the storage network."""
        return STORAGE_ADDRESS if host == STORAGE else f"{_STORAGE_NET}.{self._number(host)}"

    def inside(self, host: str) -> Command:
        """Prefix of a command that runs on a host: its network and its /sys; all else stays this machine's."""
        return ["ip", "netns", "exec", self.namespace(host)]

    def on_network_of(self, host: str) -> Command:
        """Prefix of a command on a host's network whose mounts all hosts shall see."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(host)}", "--"]

    def up_commands(self) -> list[Command]:
        """Make and shape everything, in order."""
        return [
            *(["ip", "netns", "add", self.namespace(host)] for host in self.hosts),
            *(self._ip(host, "link", "set", "lo", "up") for host in self.hosts),
            *self._bridge(STORAGE, "storage", f"{STORAGE_ADDRESS}/24"),
            *self._bridge(SWITCH, "compute"),
            *self._bridge(SWITCH, "mgmt"),
            *self._attach(CONTROL, "snic", STORAGE, CONTROL, "storage", self.storage_address(CONTROL)),
            *self._attach(CONTROL, "mgmt", SWITCH, f"m-{CONTROL}", "mgmt", self.management_address(CONTROL)),
            *(command for node in self.nodes for command in self._node(node)),
        ]

    def down_commands(self) -> list[Command]:
        """Remove all namespaces; their devices and shaping go with them."""
        return [["ip", "netns", "delete", self.namespace(host)] for host in self.hosts]

    def _node(self, node: str) -> list[Command]:
        commands = [
            *self._attach(node, "snic", STORAGE, node, "storage", self.storage_address(node)),
            *self._attach(node, "cnic", SWITCH, f"c-{node}", "compute", self.compute_address(node)),
            *self._attach(node, "mgmt", SWITCH, f"m-{node}", "mgmt", self.management_address(node)),
        ]
        for host, device in ((node, "snic"), (STORAGE, node)):
            commands += self._shape(host, device, self.snic_bytes_per_s, lanes=False)
        for host, device in ((node, "cnic"), (SWITCH, f"c-{node}")):
            commands += self._shape(host, device, self.cnic_bytes_per_s, lanes=self.lanes)
        return commands

    def _shape(self, host: str, device: str, rate: int | None, *, lanes: bool) -> list[Command]:
        if rate is None:
            return []
        return [[*self.inside(host), *command] for command in htb_commands(device, rate * BITS_PER_BYTE, lanes=lanes)]

    def _bridge(self, host: str, name: str, address: str = "") -> list[Command]:
        return [
            self._ip(host, "link", "add", name, "type", "bridge"),
            self._ip(host, "link", "set", name, "up"),
            *([self._ip(host, "address", "add", address, "dev", name)] if address else []),
        ]

    def _attach(self, host: str, device: str, switch: str, port: str, bridge: str, address: str) -> list[Command]:
        """A cable from a host's new device to a new port of a switch's bridge."""
        return [
            ["ip", "link", "add", device, "mtu", str(MTU), "netns", self.namespace(host), "type", "veth",
             "peer", "name", port, "mtu", str(MTU), "netns", self.namespace(switch)],
            self._ip(switch, "link", "set", port, "master", bridge, "up"),
            self._ip(host, "address", "add", f"{address}/24", "dev", device),
            self._ip(host, "link", "set", device, "up"),
        ]  # fmt: skip

    def _ip(self, host: str, *arguments: str) -> Command:
        return ["ip", "-n", self.namespace(host), *arguments]
