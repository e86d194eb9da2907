"""Replays in a testbed: a real network between the hosts, a real S3 service, the kernel's counters, pulled cables."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualpath.testbed.network import namespaces

NAME = "te"
DEADLINE_S = 200.0
REPLAY = ("paper-64k", "--shrink", "8", "--model", "tiny", "--max-context", "4096", "--seed", "3")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "nsenter"))), reason="needs root, iproute2, nsenter"
)


def dualpath(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dualpath", *arguments]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    subprocess.run(dualpath("testbed", "down", "--name", NAME), capture_output=True, timeout=DEADLINE_S)
    assert not any(space.startswith(f"dp-{NAME}-") for space in namespaces())


def replay(file: Path, testbed: list[str], *arguments: str) -> list[dict[str, Any]]:
    command = dualpath("testbed", "run", "--name", NAME, *testbed, "--", "replay", *REPLAY, "--json", str(file))
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return list(json.loads(file.read_text())["runs"])


def check_tokens(runs: list[dict[str, Any]]) -> None:
    assert all(run["errors"] == 0 and run["restarted"] == [] for run in runs)
    apart = [d for run in runs for d in run["divergences"] if d["logit_gap"] > 1e-3]
    assert apart == []


def check_wire(run: dict[str, Any]) -> None:
    """The kernel counted what the plans named, once, and what protocols add to it."""
    came_in = sum(count for port, count in run["wire_bytes"].items() if port.endswith("snic_in"))
    read = sum(run["bytes_read"].values())
    assert 0 < read < came_in < 1.1 * read


@pytest.mark.parametrize("storage", ["s3", "mount"])
def test_both_paths_use_both_storage_nics(storage: str, tmp_path: Path) -> None:
    if storage == "mount" and not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    arguments = ("--agents", "3", "--turns", "2", "--read-policy", "prefill-only,split")
    basic, both = replay(tmp_path / "out.json", ["--storage", storage], *arguments)
    check_tokens([basic, both])
    for run in (basic, both):
        check_wire(run)
    assert basic["bytes_read"]["decode"] == 0 < both["bytes_read"]["decode"]
    assert basic["snic_utilisation"] < 0.52, "one of two NICs at most"
    assert both["snic_utilisation"] > 0.7  # a short run on a busy machine; docs/design/testbed.md has the real figures


def test_nixl_gives_the_same_tokens(tmp_path: Path) -> None:
    pytest.importorskip("nixl_cu12", reason="nixl is not installed")
    arguments = ("--agents", "2", "--turns", "2", "--read-policy")
    by_tcp = replay(tmp_path / "tcp.json", [], *arguments, "split", "--transport", "tcp")
    by_nixl = replay(tmp_path / "nixl.json", [], *arguments, "split", "--transport", "nixl")
    check_tokens(by_tcp + by_nixl)
    assert by_tcp[0]["tokens_sha256"] == by_nixl[0]["tokens_sha256"]


def test_requests_survive_pulled_cables(tmp_path: Path) -> None:
    """Every NIC in turn is down for two seconds while the replay runs; tokens are those of undisturbed agents."""
    subprocess.run(dualpath("testbed", "up", "--name", NAME, "--snic", "40Mbit/s"), check=True, timeout=DEADLINE_S)
    arguments = ("--agents", "3", "--turns", "3", "--read-policy", "split")
    undisturbed = replay(tmp_path / "undisturbed.json", [], *arguments)
    out = tmp_path / "out.json"
    command = dualpath("testbed", "run", "--name", NAME, "--", "replay", *REPLAY, *arguments, "--json", str(out))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        cuts = 0
        while running.poll() is None and cuts < 40:
            nic = [("p0", "snic"), ("d0", "cnic"), ("d0", "snic"), ("p0", "cnic")][cuts % 4]
            cut = dualpath("testbed", "cut", *nic, "--name", NAME, "--seconds", "2")
            subprocess.run(cut, check=True, capture_output=True, timeout=DEADLINE_S)
            cuts += 1
        text, _ = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 0, text
    disturbed = json.loads(out.read_text())["runs"]
    check_tokens(disturbed)
    assert disturbed[0]["tokens_sha256"] == undisturbed[0]["tokens_sha256"]
    assert disturbed[0]["jct_s"] > 1.3 * undisturbed[0]["jct_s"], "the cuts were felt"
