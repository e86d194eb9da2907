"""Lanes on a real kernel: two network namespaces joined by a veth pair that is shaped with our own commands."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dualpath.qos.ethernet import htb_commands, segment_commands

DEVICE = "qos0"
ADDRESSES = ("10.77.31.1", "10.77.31.2")
RATE = 100_000_000
BULK = """
import socket, sys, time
link = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
link.sendall(b"dpburst1S\\0\\0\\0" + (262144).to_bytes(4, "big"))
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    link.send(bytes(65536))
"""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"), reason="needs root and iproute2"
)


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
    return done.stdout


class Pair:
    """Two namespaces; `a` sends to `b`, where a burst server listens."""

    def __init__(self) -> None:
        self.names = tuple(f"dp-qos-{os.getpid()}-{side}" for side in "ab")
        for name in self.names:
            run("ip", "netns", "add", name)
        ends = [f"dpq{os.getpid()}{side}"[-15:] for side in "ab"]
        run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(self.names, ends, ADDRESSES, strict=True):
            run("ip", "link", "set", end, "netns", name)
            run("ip", "-n", name, "link", "set", end, "name", DEVICE)
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", DEVICE)
            run("ip", "-n", name, "link", "set", DEVICE, "up")
        serve = ("qos", "--serve", "--host", ADDRESSES[1], "--seconds", "100")
        self.server = subprocess.Popen(self.inside(1, sys.executable, "-m", "dualpath", *serve), stdout=subprocess.PIPE)
        assert self.server.stdout is not None
        line = self.server.stdout.readline().decode()
        self.port = int(line.split()[2].rpartition(":")[2])

    def inside(self, side: int, *command: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.names[side], *command)

    def shape(self, *, lanes: bool) -> None:
        for side in (0, 1):
            for command in [*htb_commands(DEVICE, RATE, lanes=lanes), *segment_commands(DEVICE, RATE)]:
                run(*self.inside(side, *command))

    def check(self, *more: str) -> subprocess.CompletedProcess[str]:
        command = self.inside(0, sys.executable, "-m", "dualpath", "qos", "--check", "--device", DEVICE, *more)
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def sent_bytes(self) -> int:
        shown = run(*self.inside(0, "tc", "-s", "class", "show", "dev", DEVICE))
        found = re.search(r"class htb 1:1 root.*?Sent (\d+)", shown, re.DOTALL)
        assert found
        return int(found[1])

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        for name in self.names:
            run("ip", "netns", "del", name, check=False)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    try:
        made = Pair()
    except AssertionError as error:
        pytest.skip(f"this host makes no namespaces: {error}")
    yield made
    made.close()


def test_commands_may_run_again_and_hold_the_rate(pair: Pair) -> None:
    pair.shape(lanes=True)
    pair.shape(lanes=True)
    filters = run(*pair.inside(0, "tc", "filter", "show", "dev", DEVICE))
    assert filters.count("flowid") == 7, "a second run replaces, it does not add"
    bulk = subprocess.Popen(pair.inside(0, sys.executable, "-c", BULK, ADDRESSES[1], str(pair.port), "4"))
    try:
        time.sleep(1.5)  # past the start of the connection
        before, start = pair.sent_bytes(), time.monotonic()
        time.sleep(2)
        after, end = pair.sent_bytes(), time.monotonic()
    finally:
        bulk.kill()
        bulk.wait()
    share = (after - before) * 8 / (end - start) / RATE
    assert 0.8 < share < 1.02, "less only where this machine's other work starves the sender"


def test_a_host_with_lanes_passes_and_marked_packets_land_in_their_classes(pair: Pair, tmp_path: Path) -> None:
    pair.shape(lanes=True)
    out = tmp_path / "check.json"
    peer = f"{ADDRESSES[1]}:{pair.port}"
    done = pair.check("--rate", "100Mbit/s", "--peer", peer, "--seconds", "3", "--json", str(out))
    found = msgspec.json.decode(out.read_bytes())
    verdicts = {finding["subject"]: finding["verdict"] for finding in found["findings"]}
    assert "round trips" in verdicts, done.stdout + done.stderr
    late = verdicts.pop("round trips")  # a matter of this machine's load too: bounded below, with room
    assert set(verdicts.values()) == {"ok"}, done.stdout
    assert {"packets model", "packets layers", "packets blocks"} <= set(verdicts)
    assert done.returncode == (0 if late == "ok" else 1)
    assert found["round_trips"]["loaded"]["p50_s"] < 5 * found["round_trips"]["idle"]["p50_s"]


def test_a_host_without_lanes_fails_and_bursts_wait(pair: Pair, tmp_path: Path) -> None:
    pair.shape(lanes=False)
    out = tmp_path / "check.json"
    done = pair.check("--peer", f"{ADDRESSES[1]}:{pair.port}", "--seconds", "2", "--json", str(out))
    assert done.returncode == 1
    found = msgspec.json.decode(out.read_bytes())
    missing = {finding["subject"] for finding in found["findings"] if finding["verdict"] == "missing"}
    assert {"class model", "filter model", "packets model", "round trips"} <= missing
    assert found["round_trips"]["loaded"]["p50_s"] > 5 * found["round_trips"]["idle"]["p50_s"]
