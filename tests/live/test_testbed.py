"""Testbeds for real: made and gone, side by side, after crashes; root only."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dualpath.testbed.layout import Layout
from dualpath.testbed.network import namespaces
from dualpath.testbed.state import folder_of, load

NAMES = ("ta", "tb")
DEADLINE_S = 60.0

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "nsenter"))), reason="needs root, iproute2, nsenter"
)


def dualpath(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dualpath", *arguments]


def run(*arguments: str) -> str:
    done = subprocess.run(dualpath(*arguments), capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def traces(name: str) -> list[str]:
    """What is left of a testbed."""
    left = [str(folder_of(name))] if folder_of(name).exists() else []
    left += [space for space in namespaces() if space.startswith(f"dp-{name}-")]
    left += [line for line in Path("/proc/mounts").read_text().splitlines() if f"dualpath-testbed/{name}/" in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        left += [line] if f"dualpath-testbed/{name}/" in line else []
    return left


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    for name in NAMES:
        subprocess.run(dualpath("testbed", "down", "--name", name), capture_output=True, timeout=DEADLINE_S)
        assert traces(name) == []


def until_gone(name: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while traces(name) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert traces(name) == []


@needs_root
def test_two_testbeds_side_by_side() -> None:
    before = namespaces()
    for name in NAMES:
        run("testbed", "up", "--name", name, "--topology", "1P1D")
    for name in NAMES:
        assert "dualpath" in run("testbed", "run", "--name", name, "--host", "d0", "--", "--version")
    run("testbed", "down", "--name", "ta")
    assert traces("ta") == []
    assert "dualpath" in run("testbed", "run", "--name", "tb", "--", "--version")
    run("testbed", "down", "--name", "tb")
    assert namespaces() == before


@needs_root
def test_hosts_reach_each_other_and_storage_but_not_this_machine() -> None:
    layout = Layout("ta", "1P1D", 12_500_000, 100_000_000)
    run("testbed", "up", "--name", "ta")

    def reaches(host: str, address: str) -> bool:
        connect = "import socket, sys; socket.create_connection((sys.argv[1], 9), 0.5)"
        done = subprocess.run([*layout.inside(host), sys.executable, "-c", connect, address], capture_output=True)
        return b"refused" in done.stderr  # by the host itself: it is there

    assert reaches("p0", layout.compute_address("d0"))
    assert reaches("p0", layout.storage_address("storage"))
    assert reaches("d0", layout.management_address("control"))
    assert not reaches("control", layout.compute_address("d0")), "control has no compute NIC"
    assert not reaches("storage", layout.compute_address("d0"))


@needs_root
def test_a_temporary_testbed_is_gone_with_its_command_also_when_that_failed() -> None:
    assert "dualpath" in run("testbed", "run", "--name", "ta", "--", "--version")
    assert traces("ta") == []
    done = subprocess.run(dualpath("testbed", "run", "--name", "ta", "--", "explain", "x"), capture_output=True)
    assert done.returncode == 1
    assert traces("ta") == []


@needs_root
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_command_leaves_nothing(sig: signal.Signals) -> None:
    command = dualpath("testbed", "run", "--name", "ta", "--", "qos", "--serve", "--host", "10.77.3.10")
    child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + DEADLINE_S
    while not (load("ta") and load("ta").daemons) and time.monotonic() < deadline_s:  # type: ignore[union-attr]
        time.sleep(0.02)
    child.send_signal(sig)
    child.wait(DEADLINE_S)
    until_gone("ta")


@needs_root
def test_what_exists_is_not_touched() -> None:
    subprocess.run(["ip", "netns", "add", "dp-ta-p0"], check=True)
    try:
        done = subprocess.run(dualpath("testbed", "up", "--name", "ta"), capture_output=True, text=True)
        assert done.returncode == 2 and "dp-ta-p0 exist" in done.stderr
        assert "dp-ta-p0" in namespaces()
    finally:
        subprocess.run(["ip", "netns", "delete", "dp-ta-p0"], check=True)


@needs_root
def test_several_commands_may_use_a_testbed_but_none_may_end_it_under_them(tmp_path: Path) -> None:
    run("testbed", "up", "--name", "ta")
    serve = dualpath("testbed", "run", "--name", "ta", "--host", "d0", "--", "qos", "--serve", "--host", "10.77.2.12")
    with subprocess.Popen([*serve, "--port", "5001", "--seconds", "30"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert "10.77.2.12:5001" in server.stdout.readline()
        out = tmp_path / "check.json"
        check = ["qos", "--check", "--device", "cnic", "--rate", "800Mbit/s", "--peer", "10.77.2.12:5001"]
        inside = dualpath("testbed", "run", "--name", "ta", "--host", "p0", "--", *check, "--json", str(out))
        done = subprocess.run(inside, capture_output=True, text=True, timeout=DEADLINE_S)
        verdicts = {
            finding["subject"]: finding["verdict"] for finding in msgspec.json.decode(out.read_bytes())["findings"]
        }
        late = verdicts.pop("round trips")  # a matter of this machine's load too, and not what is tested here
        assert set(verdicts.values()) == {"ok"}, done.stdout
        assert done.returncode == (0 if late == "ok" else 1)
        down = subprocess.run(dualpath("testbed", "down", "--name", "ta"), capture_output=True, text=True)
        assert down.returncode == 2 and "another command works on testbed ta" in down.stderr
        server.terminate()


@needs_root
def test_a_second_up_and_a_busy_name_are_refused() -> None:
    run("testbed", "up", "--name", "ta")
    done = subprocess.run(dualpath("testbed", "up", "--name", "ta"), capture_output=True, text=True)
    assert done.returncode == 2 and "is up; end it with: dualpath testbed down --name ta" in done.stderr


@needs_root
def test_mounts_are_on_every_node_and_gone_afterwards() -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    run("testbed", "up", "--name", "ta", "--storage", "mount")
    places = sorted(folder_of("ta").glob("mnt-*"))
    assert [place.name for place in places] == ["mnt-control", "mnt-d0", "mnt-p0"]
    (places[0] / "file").write_bytes(b"kv")
    assert [(place / "file").read_bytes() for place in places] == [b"kv"] * 3
    run("testbed", "down", "--name", "ta")
    assert traces("ta") == []
