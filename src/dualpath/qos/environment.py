"""What engines and transports must be told so that their packets carry the marks of their class.

Names are those of the libraries' own documents and sources; docs/design/lanes.md says which.
"""

from dualpath.core.traffic import MARKS, Traffic
from dualpath.qos.fabric import Fabric
from dualpath.qos.section import Section

_LANES = (Traffic.LAYERS, Traffic.BLOCKS)


def sections(fabric: Fabric, device: str) -> list[Section]:
    """Environment of the engines, and of NIXL a lane."""
    if fabric is Fabric.ETHERNET:
        return [_sockets(device)]
    return [_engines(fabric, device), _nixl(fabric)]


def marks(fabric: Fabric, traffic: Traffic) -> dict[str, int]:
    """Service level and traffic class of a class of traffic, as RDMA libraries name them."""
    mark = MARKS[traffic]
    return {"SL": mark.service_level} if fabric is Fabric.INFINIBAND else {"TRAFFIC_CLASS": mark.traffic_class}


def _engines(fabric: Fabric, device: str) -> Section:
    nccl = {"SL": "NCCL_IB_SL", "TRAFFIC_CLASS": "NCCL_IB_TC"}
    lines = []
    for name, value in marks(fabric, Traffic.MODEL).items():
        lines += [f"export {nccl[name]}={value}", f"export NVSHMEM_IB_{name}={value}"]
    why = [
        "In the environment of the engines: their collectives (NCCL, NVSHMEM) are model execution.",
        "Set no UCX_IB_* there: the environment overrides what NIXL is told for each lane.",
        "A program whose only traffic over UCX is model execution (MPI) takes these two instead:",
        *(f"  export UCX_IB_{name}={value}" for name, value in marks(fabric, Traffic.MODEL).items()),
        f"  export UCX_NET_DEVICES={device}:1",
    ]
    return Section("Environment of the engines", why, [f"export NCCL_IB_HCA={device}", *lines])


def _nixl(fabric: Fabric) -> Section:
    lines = []
    for traffic in _LANES:
        options = ",".join(f"IB_{name}={value}" for name, value in marks(fabric, traffic).items())
        lines.append(f"# {traffic}: engine_config={options}")
    why = [
        "The NIXL transport makes one agent a lane and tells each its marks itself (engine_config of the UCX backend).",
        "Nothing to set; these are the values that it uses. UCX_IB_SL or UCX_IB_TRAFFIC_CLASS would override them.",
    ]
    return Section("NIXL, one agent a lane", why, lines)


def _sockets(device: str) -> Section:
    mark = MARKS[Traffic.MODEL]
    why = [
        "The TCP transport marks its own sockets; nothing to set for KV traffic. Marks of classes:",
        *(
            f"  {name}: DSCP {m.dscp}, IP_TOS {m.traffic_class:#04x}, SO_PRIORITY {m.priority}"
            for name, m in MARKS.items()
        ),
        "NCCL over sockets sets no marks. Let the kernel mark what it sends, by its group, for example",
        f"  iptables -t mangle -A OUTPUT -o {device} -m owner --gid-owner engines -j DSCP --set-dscp {mark.dscp}",
        "with the engines alone in that group (the agents, which carry KV, are not).",
    ]
    return Section(
        "Environment of the engines", why, [f"export NCCL_SOCKET_IFNAME={device}", "export NCCL_IB_DISABLE=1"]
    )
