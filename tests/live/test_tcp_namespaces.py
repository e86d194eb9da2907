"""TCP transfers between two hosts (network namespaces) over a cable that is pulled; needs root."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from dualpath.core.traffic import MARKS, Traffic

A, B = "dp-tcp-a", "dp-tcp-b"
LAYERS, BLOCKS = (MARKS[traffic].traffic_class for traffic in (Traffic.LAYERS, Traffic.BLOCKS))
KEY = "the secret of a cluster of tests"
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2 for network namespaces"
)
# Prints its address, then does what stdin says ("fetch ADDRESS", "push ADDRESS"); says how that went.
NODE = """
import asyncio, sys, time
from dualpath.core.errors import TransferError
from dualpath.testing.transport import GRANT, MIB, Node, local
from dualpath.transport.base import Lane, Range, RemoteRanges
from dualpath.transport.nic import NicPair
from dualpath.transport.tcp import TcpTransport

async def main():
    host, deadline_s, key = sys.argv[1], float(sys.argv[2]), sys.argv[3].encode()
    node = Node(TcpTransport(host, nics=NicPair(4 * MIB), deadline_s=deadline_s, key=key), 4 * MIB, seed=1)
    await node.transport.start()
    print(node.transport.address, flush=True)
    whole = Range(0, 4 * MIB)
    while line := await asyncio.to_thread(sys.stdin.readline):
        operation, peer = line.split()
        remote, began = RemoteRanges(peer, "arena", GRANT, [whole]), time.monotonic()
        try:
            if operation == "fetch":
                await node.transport.fetch(remote, local(whole), lane=Lane.BLOCKS)
            else:
                await node.transport.push(local(whole), remote, lane=Lane.BLOCKS)
            print("done", time.monotonic() - began, flush=True)
        except TransferError:
            print("failed", time.monotonic() - began, flush=True)

asyncio.run(main())
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def cable(state: str) -> None:
    """Pull or plug the server's end: the caller's host sees no carrier, nobody says goodbye."""
    ip("-n", A, "link", "set", "dp-tcp0", state)


class Peer:
    """A node in a namespace."""

    def __init__(self, namespace: str, host: str, deadline_s: float) -> None:
        command = ["ip", "netns", "exec", namespace, sys.executable, "-c", NODE, host, str(deadline_s), KEY]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def begin(self, operation: str, peer: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{operation} {peer}\n")
        self.process.stdin.flush()

    def result(self) -> tuple[str, float]:
        assert self.process.stdout is not None
        how, took_s = self.process.stdout.readline().split()
        return how, float(took_s)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def hosts() -> Iterator[None]:
    for name in (A, B):
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)  # of a run that was killed
    try:
        for name in (A, B):
            ip("netns", "add", name)
        ip("link", "add", "dp-tcp0", "netns", A, "type", "veth", "peer", "name", "dp-tcp1", "netns", B)
        for index, name in enumerate((A, B)):
            ip("-n", name, "address", "add", f"10.78.9.{index + 1}/24", "dev", f"dp-tcp{index}")
            ip("-n", name, "link", "set", f"dp-tcp{index}", "up")
        yield
    finally:
        for name in (A, B):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.parametrize("operation", ["fetch", "push"])
def test_a_cable_pulled_for_two_seconds_costs_only_time(hosts: None, operation: str) -> None:
    """TCP's back-off at most doubles the outage."""
    server, caller = Peer(A, "10.78.9.1", 30), Peer(B, "10.78.9.2", 30)
    try:
        caller.begin(operation, server.address)
        time.sleep(0.5)
        cable("down")
        time.sleep(2)
        cable("up")
        how, took_s = caller.result()
        assert how == "done" and 2 < took_s < 9
    finally:
        caller.close()
        server.close()


@pytest.mark.parametrize("operation", ["fetch", "push"])
def test_a_cable_pulled_for_long_fails_transfers_in_time_and_the_next_works(hosts: None, operation: str) -> None:
    server, caller = Peer(A, "10.78.9.1", 30), Peer(B, "10.78.9.2", 2.5)
    try:
        caller.begin(operation, server.address)
        time.sleep(0.5)
        cable("down")
        for _ in range(2):  # on the connection there was, and on none
            how, took_s = caller.result()
            assert how == "failed" and took_s < 4
            caller.begin(operation, server.address)
        caller.result()
        cable("up")
        time.sleep(1)
        caller.begin(operation, server.address)
        assert caller.result()[0] == "done"
    finally:
        caller.close()
        server.close()


def test_a_host_that_vanishes_is_noticed_long_before_the_deadline(hosts: None) -> None:
    """A fetch has nothing to send, so it is the probes that end it."""
    server, caller = Peer(A, "10.78.9.1", 60), Peer(B, "10.78.9.2", 60)
    try:
        caller.begin("fetch", server.address)
        time.sleep(0.4)
        cable("down")
        how, took_s = caller.result()
        assert how == "failed" and took_s < 25
    finally:
        caller.close()
        server.close()


def shape(namespace: str, device: str) -> None:
    """Classes by DSCP: 1:20 takes layers, 1:30 blocks, 1:40 all that is not marked."""
    commands = [
        "qdisc add dev {} root handle 1: htb default 40",
        *(f"class add dev {{}} parent 1: classid 1:{number} htb rate 1gbit" for number in (20, 30, 40)),
        f"filter add dev {{}} parent 1: protocol ip prio 1 u32 match ip dsfield {LAYERS:#x} 0xfc flowid 1:20",
        f"filter add dev {{}} parent 1: protocol ip prio 1 u32 match ip dsfield {BLOCKS:#x} 0xfc flowid 1:30",
    ]
    for command in commands:
        ip("netns", "exec", namespace, "tc", *command.format(device).split())


def sent(namespace: str, device: str) -> dict[str, int]:
    """Bytes that left by each class."""
    command = ["ip", "netns", "exec", namespace, "tc", "-s", "class", "show", "dev", device]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"class htb 1:(\d+) .*?Sent (\d+) bytes", shown, re.DOTALL)
    return {number: int(count) for number, count in found}


@pytest.mark.skipif(not shutil.which("tc"), reason="needs tc")
def test_the_kernel_sees_payload_in_its_lane_both_ways(hosts: None) -> None:
    shape(A, "dp-tcp0")
    shape(B, "dp-tcp1")
    server, caller = Peer(A, "10.78.9.1", 30), Peer(B, "10.78.9.2", 30)
    try:
        for operation, payload, acknowledgements in [
            ("fetch", (A, "dp-tcp0"), (B, "dp-tcp1")),
            ("push", (B, "dp-tcp1"), (A, "dp-tcp0")),
        ]:
            before = sent(*payload), sent(*acknowledgements)
            caller.begin(operation, server.address)
            assert caller.result()[0] == "done"
            after = sent(*payload), sent(*acknowledgements)
            moved = [
                {number: end[number] - start[number] for number in end}
                for start, end in zip(before, after, strict=True)
            ]
            assert 4 << 20 <= moved[0]["30"] < 1.2 * (4 << 20)
            assert moved[0]["20"] == 0 and moved[0]["40"] < 2000, "but for ARP and the connection's first packet"
            assert moved[1]["20"] == 0 and moved[1]["40"] < 2000
    finally:
        caller.close()
        server.close()
