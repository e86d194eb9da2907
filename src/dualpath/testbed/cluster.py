"""The configuration of a cluster whose roles run on a testbed's hosts."""

from dualpath.core.config import CONTROL, Config, Host, Network, Port, Storage
from dualpath.core.config import Cluster as ClusterSection
from dualpath.testbed.layout import SCHEDULER_PORT, STORAGE, SWITCH, Layout
from dualpath.testbed.service import BUCKET, mount_place
from dualpath.testbed.state import State, folder_of


def cluster_config(state: State) -> Config:
    """Hosts, counters, rates, store and secret; everything else at its default."""
    layout = state.layout
    folder = folder_of(layout.name)
    snic, cnic = (_rate(rate) for rate in (layout.snic_bytes_per_s, layout.cnic_bytes_per_s))
    return Config(
        cluster=ClusterSection(topology=layout.topology),
        storage=Storage(path=f"s3://{BUCKET}", snic=snic, cnic=cnic, pacing="network", page_cache="drop"),
        network=Network(
            scheduler=f"tcp://{layout.management_address(CONTROL)}:{SCHEDULER_PORT}", key_file=str(folder / "key")
        ),
        hosts={
            CONTROL: Host(address=layout.management_address(CONTROL), store=_store(state, CONTROL)),
            **{node: _host(state, node) for node in layout.nodes},
        },
    )


def _host(state: State, node: str) -> Host:
    layout = state.layout
    return Host(
        launch=layout.inside(node),
        address=layout.compute_address(node),
        store=_store(state, node),
        snic_in=_port(layout, STORAGE, node, layout.snic_bytes_per_s),
        snic_out=_port(layout, node, "snic", layout.snic_bytes_per_s),
        cnic_in=_port(layout, SWITCH, f"c-{node}", layout.cnic_bytes_per_s),
        cnic_out=_port(layout, node, "cnic", layout.cnic_bytes_per_s),
    )


def _store(state: State, host: str) -> str:
    return str(mount_place(folder_of(state.layout.name), host)) if state.storage == "mount" else ""


def _port(layout: Layout, host: str, device: str, rate: int | None) -> Port | None:
    """Only a shaped device has classes that count."""
    return None if rate is None else Port(device, layout.inside(host))


def _rate(bytes_per_s: int | None) -> str:
    return "none" if bytes_per_s is None else f"{bytes_per_s}B/s"
