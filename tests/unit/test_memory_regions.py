"""Shared memory, descriptors over sockets, and the bookkeeping of registered regions."""

import asyncio
import mmap
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError, GrantExpired, ProtocolError, TransferError
from dualpath.transport.base import Range
from dualpath.transport.fds import (
    receive_message,
    receive_message_async,
    send_message,
    send_message_async,
)
from dualpath.transport.memory import SharedMemory
from dualpath.transport.regions import Cursor, Region, Regions, coalesce, within


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_both_users_of_a_memfd_see_the_same_bytes() -> None:
    with SharedMemory.create(8192) as one:
        with SharedMemory(os.dup(one.fd)) as other:
            one.view[5:10] = b"hello"
            assert bytes(other.view[5:10]) == b"hello"
            assert other.size_bytes == one.size_bytes == 8192
        assert bytes(one.view[:10]) == b"\0" * 5 + b"hello"


def test_close_frees_descriptor_and_mapping_and_may_be_repeated() -> None:
    before = _open_fds()
    memory = SharedMemory.create(4096, name="dualpath-close-test")
    assert "dualpath-close-test" in Path("/proc/self/maps").read_text()
    memory.close()
    memory.close()
    assert _open_fds() == before
    assert "dualpath-close-test" not in Path("/proc/self/maps").read_text()


def test_close_leaves_slices_of_others_valid() -> None:
    memory = SharedMemory.create(4096, name="dualpath-slice-test")
    part = memory.view[:10]
    memory.close()
    part[:2] = b"ok"
    assert bytes(part[:2]) == b"ok"
    del part, memory
    assert "dualpath-slice-test" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("size_bytes", [0, -1, 1 << 50])
def test_memory_that_cannot_be_had(size_bytes: int) -> None:
    before = _open_fds()
    with pytest.raises(ConfigError, match="shared memory"):
        SharedMemory.create(size_bytes)
    assert _open_fds() == before


def test_what_cannot_be_mapped_is_a_config_error() -> None:
    before = _open_fds()
    for fd in (os.memfd_create("empty"), os.pipe()[0]):
        with pytest.raises(ConfigError, match="cannot map"):
            SharedMemory(fd)
    assert _open_fds() == before + 1, "only the pipe's other end is left"


def test_mapped_memory_cannot_shrink() -> None:
    with SharedMemory.create(4096) as memory, pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 0)


def test_attached_memory_outlives_its_killed_creator_and_nothing_else_does() -> None:
    script = (
        "import socket, sys\n"
        "from dualpath.transport.fds import send_message\n"
        "from dualpath.transport.memory import SharedMemory\n"
        "memory = SharedMemory.create(4096)\n"
        "memory.view[:4] = b'kept'\n"
        "sock = socket.socket(fileno=int(sys.argv[1]))\n"
        "send_message(sock, b'here', [memory.fd])\n"
        "sock.recv(1)\n"
    )
    near, far = socket.socketpair()
    shm_before = set(os.listdir("/dev/shm"))
    command = [sys.executable, "-c", script, str(far.fileno())]
    with near, subprocess.Popen(command, pass_fds=[far.fileno()]) as creator:
        far.close()
        near.settimeout(20)
        body, fds = receive_message(near, max_fds=1)
        os.kill(creator.pid, signal.SIGKILL)
        creator.wait()
        with SharedMemory(fds[0]) as memory:
            assert (body, bytes(memory.view[:4])) == (b"here", b"kept")
    assert {name for name in os.listdir("/dev/shm") if "dualpath" in name} <= shm_before


def test_messages_carry_descriptors_in_both_styles() -> None:
    async def run() -> None:
        near, far = socket.socketpair()
        with near, far, SharedMemory.create(4096) as memory:
            near.setblocking(False)
            far.setblocking(False)
            send = send_message_async(near, b"x" * 900_000, [memory.fd, memory.fd])
            _, (body, fds) = await asyncio.gather(send, receive_message_async(far, max_fds=2))
            assert body == b"x" * 900_000
            assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(memory.fd).st_ino] * 2
            for fd in fds:
                os.close(fd)

    asyncio.run(run())


@pytest.mark.parametrize("allowed", [0, 1])
def test_more_descriptors_than_allowed_are_refused_and_closed(allowed: int) -> None:
    near, far = socket.socketpair()
    with near, far, SharedMemory.create(4096) as memory:
        before = _open_fds()
        send_message(near, b"body", [memory.fd] * 3)
        with pytest.raises(ProtocolError):
            receive_message(far, max_fds=allowed)
        assert _open_fds() == before


def test_end_and_garbage_on_a_message_socket() -> None:
    for sent, error in [(b"", TransferError), (b"DPT1\0\0", TransferError), (b"GET / HTTP/1.1\r\n", ProtocolError)]:
        near, far = socket.socketpair()
        with far:
            with near:
                near.sendall(sent)
            with pytest.raises(error):
                receive_message(far)


def test_receive_obeys_the_sockets_timeout() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(0.05)
        with pytest.raises(TimeoutError):
            receive_message(far)


ranges = st.lists(st.builds(Range, st.integers(0, 200), st.integers(1, 60)), min_size=1, max_size=20)


@settings(max_examples=100)
@given(ranges, st.integers(1, 100))
def test_cursor_and_coalesce_keep_bytes_and_order(wanted: list[Range], step: int) -> None:
    memory = memoryview(bytes(index % 251 for index in range(260)))
    expected = b"".join(bytes(memory[r.offset : r.offset + r.length]) for r in wanted)
    for given_ranges in (wanted, coalesce(wanted)):
        cursor = Cursor(memory, given_ranges)
        sizes = [min(step, len(expected) - start) for start in range(0, len(expected), step)]
        assert b"".join(bytes(view) for size in sizes for view in cursor.take(size)) == expected


def test_coalesce_merges_neighbours_only() -> None:
    assert coalesce([Range(0, 4), Range(4, 4), Range(9, 1), Range(8, 1)]) == [Range(0, 8), Range(9, 1), Range(8, 1)]


@pytest.mark.parametrize("wrong", [Range(-1, 5), Range(0, 0), Range(5, -2), Range(0, 101), Range(100, 1)])
def test_ranges_outside(wrong: Range) -> None:
    assert within([Range(0, 100), Range(99, 1)], 100)
    assert not within([Range(0, 100), wrong], 100)


def test_bounds_are_checked_before_the_owner_is_asked() -> None:
    asked = []
    region = Region(memoryview(bytearray(100)), -1, lambda grant, _: not asked.append(grant) and grant == 1)
    region.check(1, [Range(0, 100)])
    with pytest.raises(TransferError):
        region.check(1, [Range(0, 101)])
    with pytest.raises(GrantExpired):
        region.check(2, [Range(0, 100)])
    assert asked == [1, 2]


def test_drained_waits_for_this_grant_only() -> None:
    async def run() -> None:
        region = Region(memoryview(bytearray(100)), -1, lambda *_: True)
        await region.drained(1)
        with region.use(2):
            with region.use(1), region.use(1):
                waiting = [asyncio.create_task(region.drained(1)) for _ in range(2)]
                await asyncio.sleep(0.01)
                assert not any(task.done() for task in waiting)
            await asyncio.wait_for(asyncio.gather(*waiting), 1)
            await asyncio.wait_for(region.drained(1), 1)

    asyncio.run(run())


def test_memory_that_cannot_be_a_region() -> None:
    regions = Regions()
    regions.add("arena", memoryview(bytearray(10)), -1, lambda *_: True)
    with pytest.raises(ConfigError):
        regions.add("arena", memoryview(bytearray(10)), -1, lambda *_: True)
    with pytest.raises(ConfigError, match="writable"):
        regions.add("constant", memoryview(bytes(10)), -1, lambda *_: True)
    with SharedMemory.create(mmap.PAGESIZE) as memory, pytest.raises(ConfigError, match="smaller"):
        regions.add("large", memoryview(bytearray(mmap.PAGESIZE + 1)), memory.fd, lambda *_: True)
