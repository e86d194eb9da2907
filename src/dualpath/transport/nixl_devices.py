"""Which devices carry a lane's payload under NIXL, and how that lane's packets are marked.

UCX would take any device it finds, and between processes of one machine copy past the network. So it is told: the
network interface that has the host's address, and over it RDMA where it can (RoCE, InfiniBand), else TCP.
"""

import fcntl
import ipaddress
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.core.traffic import MARKS
from dualpath.transport.base import Lane
from dualpath.transport.tcp import TRAFFIC, mark

PORTS = {Lane.LAYERS: range(21_000, 21_500), Lane.BLOCKS: range(21_500, 22_000)}
"""Where a lane's endpoints listen for payload over TCP: tells lanes apart for tc and firewalls."""

_SIOCGIFADDR = 0x8915
_NAME_BYTES = 256  # of the ioctl's argument; the address follows 20 bytes in


def ucx_settings(host: str, lane: Lane) -> str:
    """UCX's settings (name=value, comma between) for the lane's agent on this host.

    ConfigError when no interface has the address. Variables UCX_* of the environment override these.
    """
    interface = interface_of(host)
    rdma = _rdma_device(interface)
    marks = MARKS[TRAFFIC[lane]]
    ports = PORTS[lane]
    if rdma:
        return f"TLS=rc,NET_DEVICES={rdma},IB_SL={marks.service_level},IB_TRAFFIC_CLASS={marks.traffic_class}"
    return f"TLS=tcp,NET_DEVICES={interface},TCP_PORT_RANGE={ports[0]}-{ports[-1]}"


def interface_of(host: str) -> str:
    """Name of the network interface that has this IP address; ConfigError when none has it."""
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        return "lo"
    found = _interface_v4(address) if address.version == 4 else _interface_v6(address)
    if not found:
        raise ConfigError(f"no network interface has the address {host}; give the compute NIC's own address")
    return found


def mark_sockets(lane: Lane) -> None:
    """Mark UCX's TCP sockets of the lane in this process with its DSCP and priority, as UCX cannot do it.

    They are known by their ports. Accepted sockets inherit from the listening one, so this is to be called when an
    agent was made and when it has connected to a peer.
    """
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError, ValueError):  # closed meanwhile, or not a socket
            if os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry))) as sock:
                    if _ports(sock) & set(PORTS[lane]):
                        mark(sock, lane)


def _ports(sock: socket.socket) -> set[int]:
    """Ports of both ends of a TCP socket; none for any other."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return set()
    ports = {sock.getsockname()[1]}
    with suppress(OSError):  # it listens
        ports.add(sock.getpeername()[1])
    return ports


def _interface_v4(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack(f"{_NAME_BYTES}s", name.encode()))
                if answer[20:24] == address.packed:
                    return name
    return ""


def _interface_v6(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else ():
        packed, *_, name = line.split()
        if bytes.fromhex(packed) == address.packed:
            return name
    return ""


def _rdma_device(interface: str) -> str:
    """UCX's name (device:port) of the RDMA device behind a network interface; empty when there is none."""
    devices = sorted(Path(f"/sys/class/net/{interface}/device/infiniband").glob("*"))
    if not devices:
        return ""
    port = int(Path(f"/sys/class/net/{interface}/dev_port").read_text()) + 1
    return f"{devices[0].name}:{port}"
