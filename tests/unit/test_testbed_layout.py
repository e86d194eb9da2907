"""A testbed as data: who is connected to what, and how it is shaped."""

import os

import pytest
from typer.testing import CliRunner

from dualpath.cli.main import app
from dualpath.core.config_file import check_config
from dualpath.core.errors import ConfigError
from dualpath.testbed.cluster import cluster_config
from dualpath.testbed.layout import Layout
from dualpath.testbed.network import check_privileges
from dualpath.testbed.state import State, folder_of

LAYOUT = Layout("t", "2P1D", 12_500_000, 100_000_000)


def test_every_node_has_a_nic_on_each_network_and_control_has_none_for_kv() -> None:
    made = [command for command in LAYOUT.up_commands() if "veth" in command]
    devices = {(c[c.index("netns") + 1], c[3]) for c in made}
    nodes = {(f"dp-t-{node}", nic) for node in ("p0", "p1", "d0") for nic in ("snic", "cnic", "mgmt")}
    assert devices == nodes | {("dp-t-control", "snic"), ("dp-t-control", "mgmt")}


def test_all_addresses_differ() -> None:
    hosts = ["control", *LAYOUT.nodes]
    addresses = [LAYOUT.storage_address(host) for host in [*hosts, "storage"]]
    addresses += [LAYOUT.management_address(host) for host in hosts]
    addresses += [LAYOUT.compute_address(node) for node in LAYOUT.nodes]
    assert len(set(addresses)) == len(addresses) == 4 + 1 + 4 + 3


def test_both_directions_of_every_nic_are_shaped_and_nothing_else() -> None:
    shaped = {
        (c[3].removeprefix("dp-t-"), c[c.index("dev") + 1], c[c.index("ceil") + 1])
        for c in LAYOUT.up_commands()
        if "class" in c and c[c.index("classid") + 1] == "1:1"
    }
    assert shaped == {
        ("p0", "snic", "100000000bit"), ("p1", "snic", "100000000bit"), ("d0", "snic", "100000000bit"),
        ("storage", "p0", "100000000bit"), ("storage", "p1", "100000000bit"), ("storage", "d0", "100000000bit"),
        ("p0", "cnic", "800000000bit"), ("p1", "cnic", "800000000bit"), ("d0", "cnic", "800000000bit"),
        ("switch", "c-p0", "800000000bit"), ("switch", "c-p1", "800000000bit"), ("switch", "c-d0", "800000000bit"),
    }  # fmt: skip


def test_without_rates_nothing_is_shaped_or_counted() -> None:
    free = Layout("t", "1P1D", None, None)
    assert not any("tc" in command for command in free.up_commands())
    assert cluster_config(State(free, "s3", False, {})).host_of("p0").snic_in is None


def test_what_goes_up_comes_down() -> None:
    made = [c[-1] for c in LAYOUT.up_commands() if c[:3] == ["ip", "netns", "add"]]
    assert [c[-1] for c in LAYOUT.down_commands()] == made


@pytest.mark.parametrize(("storage", "store"), [("s3", "s3://blocks"), ("mount", "/var/lib/dualpath-testbed/t/mnt-p1")])
def test_the_clusters_configuration_is_valid_and_off_loopback(storage: str, store: str) -> None:
    config = cluster_config(State(LAYOUT, storage, False, {}))
    check_config(config)
    assert config.store_of("p1") == store
    assert config.host_of("p1").address == LAYOUT.compute_address("p1")
    assert (config.snic_bytes_per_s, config.cnic_bytes_per_s) == (12_500_000, 100_000_000)


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a-very-long-name", "Main"])
def test_names_that_could_leave_the_folder_or_be_too_long_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="small letters and digits"):
        folder_of(name)


@pytest.mark.parametrize("command", [["up"], ["run", "--", "--version"], ["down"], ["cut", "p0", "snic"]])
def test_without_root_the_error_names_the_mend(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(app, ["testbed", *command])
    assert isinstance(done.exception, ConfigError)
    assert "needs root: run it with sudo" in str(done.exception)


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="not installed: ip, tc, nsenter; on Debian: apt-get install"):
        check_privileges()
