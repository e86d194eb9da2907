"""The burst generator and its server over loopback."""

import contextlib
import os
import socket
import time

import pytest

from dualpath.core.errors import ConfigError, ProtocolError, ServiceError
from dualpath.core.traffic import MARKS, Traffic
from dualpath.qos.bursts import flood, measure
from dualpath.qos.server import BurstServer, realtime
from dualpath.qos.wire import ECHO, SINK, Greeting, connect, mark, pack_greeting, unpack_greeting


def test_round_trips_are_counted_and_ordered() -> None:
    with BurstServer("127.0.0.1", seconds=20) as server:
        trips = measure(server.address, 0.3)
    assert trips.count > 20
    assert 0 < trips.p50_s <= trips.p99_s <= trips.max_s < 5


def test_a_flood_moves_bytes_and_ends_in_time() -> None:
    with BurstServer("127.0.0.1", seconds=20) as server:
        start = time.monotonic()
        assert flood(server.address, 0.3, connections=2) > 1_000_000
        assert time.monotonic() - start < 5


def test_connections_carry_the_marks_of_their_class() -> None:
    with BurstServer("127.0.0.1", seconds=20) as server:
        for traffic in Traffic:
            with connect(server.address, Greeting(ECHO, 64), traffic, deadline_s=5) as link:
                assert link.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == MARKS[traffic].traffic_class
                assert link.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == MARKS[traffic].priority


def test_sockets_of_ip_version_6_are_marked_too() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as link:
        mark(link, Traffic.MODEL)
        assert link.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == MARKS[Traffic.MODEL].traffic_class
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == MARKS[Traffic.MODEL].priority


def test_a_server_ends_after_its_time() -> None:
    start = time.monotonic()
    BurstServer("127.0.0.1", seconds=0.3).run()
    assert 0.3 <= time.monotonic() - start < 3


def test_strangers_are_cut_off() -> None:
    with BurstServer("127.0.0.1", seconds=20) as server, socket.create_connection(server.address, timeout=5) as link:
        link.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):  # as good an end
            assert link.recv(100) == b""
        assert measure(server.address, 0.1).count > 0, "others are still served"


def test_without_a_server_the_mend_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    with pytest.raises(ServiceError, match="dualpath qos --serve"):
        measure(address, 0.1)
    with pytest.raises(ServiceError, match="dualpath qos --serve"):
        flood(address, 0.1, connections=2)


def test_a_lost_server_ends_the_measurement() -> None:
    with BurstServer("127.0.0.1", seconds=0.5) as server, pytest.raises(ServiceError, match="was lost"):
        measure(server.address, 10)


def test_addresses_of_others_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        BurstServer("192.0.2.1")


def test_greetings_survive_the_wire_and_wrong_ones_do_not() -> None:
    assert unpack_greeting(pack_greeting(Greeting(SINK, 4096))) == Greeting(SINK, 4096)
    for size in (0, 10**9):
        with pytest.raises(ConfigError, match="frame"):
            pack_greeting(Greeting(ECHO, size))
    good = pack_greeting(Greeting(ECHO, 64))
    for bad in (b"x" + good[1:], good[:8] + b"?" + good[9:], good[:-4] + b"\xff\xff\xff\xff"):
        with pytest.raises(ProtocolError):
            unpack_greeting(bad)


def test_realtime_is_given_back() -> None:
    with realtime() as first:
        assert (os.sched_getscheduler(0) == os.SCHED_FIFO) == first
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
