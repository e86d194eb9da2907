"""Roles on two hosts (network namespaces), started by hand: who has the cluster's key joins, nobody else."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dualpath.core.config import Config
from dualpath.core.config_file import load_config, save_config
from dualpath.engine.checkpoints import default_cache_dir, resolve_model

HOSTS = {"control": ("dp-curve-a", "10.77.0.1"), "p0": ("dp-curve-b", "10.77.0.2")}
DEADLINE_S = 60.0
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2"
)


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check, timeout=20)


def remove_hosts() -> None:
    for namespace, _ in HOSTS.values():
        ip("netns", "delete", namespace, check=False)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two hosts and a cable between them."""
    remove_hosts()
    (a, address_a), (b, address_b) = HOSTS.values()
    try:
        for namespace in (a, b):
            ip("netns", "add", namespace)
        ip("-n", a, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b)
        for namespace, address in ((a, address_a), (b, address_b)):
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", namespace, "link", "set", "wire", "up")
            ip("-n", namespace, "link", "set", "lo", "up")
        yield
    finally:
        remove_hosts()


def configuration(folder: Path, key: str) -> Path:
    """The configuration file of a role with this key."""
    (folder / "run").mkdir(exist_ok=True)
    key_file = folder / f"key-{key[0]}"
    key_file.touch(mode=0o600)
    key_file.write_text(key)
    config: Config = load_config(
        None,
        {
            "model": {"name": "tiny", "path": str(resolve_model("tiny", cache_dir=default_cache_dir()))},
            "storage": {"path": str(folder / "store"), "arena": "16MiB"},
            "network": {
                "run_dir": str(folder / "run"),
                "scheduler": "tcp://10.77.0.1:7701",
                "key_file": str(key_file),
            },
            "hosts": {
                **{name: {"address": address} for name, (_, address) in HOSTS.items()},
                "d0": {"address": "10.77.0.3"},
            },
        },
    )
    file = folder / f"config-{key[0]}.json"
    save_config(config, file)
    return file


@contextmanager
def role(folder: Path, host: str, name: str, *arguments: str, config: Path) -> Iterator[Callable[[], str]]:
    """A role's process on a host; gives what it has logged until now."""
    file = folder / f"{name}.log"
    command = [
        "ip",
        "netns",
        "exec",
        HOSTS[host][0],
        sys.executable,
        "-m",
        "dualpath",
        *arguments,
        "--config",
        str(config),
    ]
    with file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield lambda: file.read_text(errors="replace")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def wait_for(text: str, log: Callable[[], str]) -> None:
    end = time.monotonic() + DEADLINE_S
    while text not in log():
        assert time.monotonic() < end, f"no {text!r} in:\n{log()}"
        time.sleep(0.1)


def test_an_agent_joins_from_another_host_with_the_key_only(hosts: None, tmp_path: Path) -> None:
    ours, foreign = configuration(tmp_path, "a" * 64), configuration(tmp_path, "b" * 64)
    with role(tmp_path, "control", "scheduler", "scheduler", config=ours) as scheduler:
        wait_for("scheduler listens at tcp://10.77.0.1:7701", scheduler)
        with role(tmp_path, "p0", "stranger", "agent", "p0", config=foreign) as stranger:
            wait_for("do both sides use the same network.key_file?", stranger)
            before = scheduler()
            with role(tmp_path, "p0", "member", "agent", "p0", config=ours):
                wait_for("node p0 joined", scheduler)
        after = scheduler()
    assert "p0" not in before and "WARNING" not in before and "ERROR" not in before, before
    assert after.count("node p0 joined") == 1 and "ERROR" not in after, after
    assert "a" * 64 not in after and "b" * 64 not in stranger()


def test_an_agent_joins_again_after_its_cable_was_out(hosts: None, tmp_path: Path) -> None:
    config = configuration(tmp_path, "a" * 64)
    with (
        role(tmp_path, "control", "scheduler", "scheduler", config=config) as scheduler,
        role(tmp_path, "p0", "agent", "agent", "p0", config=config) as agent,
    ):
        wait_for("node p0 joined", scheduler)
        ip("-n", HOSTS["p0"][0], "link", "set", "wire", "down")
        wait_for("node p0 is silent", scheduler)
        ip("-n", HOSTS["p0"][0], "link", "set", "wire", "up")
        wait_for("joining again", agent)
        end = time.monotonic() + DEADLINE_S
        while scheduler().count("node p0 joined") < 2:
            assert time.monotonic() < end, scheduler()
            time.sleep(0.1)
