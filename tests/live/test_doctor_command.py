"""Doctor as a process: little time, a whole profile, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualpath.core.hostprofile import HostProfile, load_host_profile
from dualpath.store.folder import BlockFolder

DOCTOR = [sys.executable, "-m", "dualpath", "doctor", "--block-bytes", "64KiB"]
TIMEOUT_S = 60


def doctor(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*DOCTOR, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostProfile, str, Path, float]]:
    """One run with a tiny budget, on a folder that is not there yet."""
    folder = tmp_path_factory.mktemp("doctor")
    start_s = time.monotonic()
    done = doctor("--store", folder / "new" / "store", "--seconds", "1", "--json", folder / "profile.json")
    assert done.returncode == 0, done.stderr
    yield load_host_profile(str(folder / "profile.json")), done.stdout, folder, time.monotonic() - start_s


def test_it_leaves_nothing_but_the_profile(measured: tuple[HostProfile, str, Path, float]) -> None:
    assert os.listdir(measured[2]) == ["profile.json"]


def test_it_keeps_to_its_time(measured: tuple[HostProfile, str, Path, float]) -> None:
    assert measured[3] < 20  # 4 s on an idle machine


def test_the_profile_is_whole(measured: tuple[HostProfile, str, Path, float]) -> None:
    profile = measured[0]
    assert profile.memory and profile.storage
    assert min(profile.memory.copy_bytes_per_s, profile.memory.crc_bytes_per_s, profile.cores) > 0
    store = {read.concurrency: read.bytes_per_s for read in profile.storage.reads if read.reader == "store"}
    assert set(store) == {1, 2, 4, 8, 16}
    assert min(store.values()) > 0
    assert profile.storage.read_concurrency in store
    assert [link.how for link in profile.links] == ["loopback", "loopback"]
    for link in profile.links:
        assert {trip.lane for trip in link.round_trips} == {"raw", "layers", "blocks"}
        assert len(link.rates) == 3 * 2 * 2
        assert link.cnic_bytes_per_s > 0


def test_the_output_is_plain_and_ends_with_what_to_change(measured: tuple[HostProfile, str, Path, float]) -> None:
    profile, output = measured[0], measured[1]
    assert "\x1b" not in output
    advice = output[output.index("What to change:") :]
    assert len(advice.splitlines()) == 1 + sum(bool(finding.mend) for finding in profile.findings)


def test_a_used_store_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"format_version":1}')
    (tmp_path / "other").mkdir()
    doctor("--store", tmp_path, "--seconds", "1")
    assert sorted(os.listdir(tmp_path)) == ["other", "store.json"]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path: Path, sig: signal.Signals) -> None:
    store = tmp_path / "store"
    command = [*DOCTOR, "--store", str(store), "--seconds", "10"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + TIMEOUT_S
    while not list(store.glob("*/0*/*")) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    process.send_signal(sig)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors.count("\n")) == (1, 1), errors
    assert "nothing is left behind" in errors
    assert os.listdir(tmp_path) == []


def test_a_serving_peer_is_measured_and_one_that_is_gone_is_named(tmp_path: Path) -> None:
    serving = subprocess.Popen(
        [*DOCTOR, "--serve", "--transport", "tcp", "--seconds", "60"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert serving.stdout is not None
        address = serving.stdout.readline().strip()
        options = ("--transport", "tcp", "--seconds", "1", "--json", tmp_path / "profile.json")
        done = doctor("--peer", address, *options)
        assert done.returncode == 0, done.stderr
        (link,) = load_host_profile(str(tmp_path / "profile.json")).links
        assert (link.peer, link.transport, link.how) == (address, "tcp", "network")
    finally:
        serving.terminate()
        assert serving.wait(TIMEOUT_S) == 0
    done = doctor("--peer", address, *options)
    assert (done.returncode, "not every peer" in done.stderr) == (1, True)
    assert f"peer {address} (not measured)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--block-bytes", "12"), "blocks of 12 bytes"),
        (("--peer", "nowhere"), "no address of a peer"),
        (("--store", "ftp://x/y"), "ftp"),
        (("--store", "memory:"), "cannot measure the store memory:"),
        (("--store", "/dev/null/store"), "cannot use"),
        (("--json", "/nowhere/profile.json"), "a folder that exists"),
        (("--key-file", "/nowhere"), "cannot read"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments: tuple[str, str], message: str) -> None:
    done = doctor(*arguments, "--seconds", "1")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_files_of_blocks_are_where_doctor_looks(tmp_path: Path) -> None:
    """Doctor reads the store's files itself: if their place moves, it must follow."""
    from dualpath.doctor.posix_reads import block_path
    from dualpath.doctor.scratch import scratch_layout

    layout, key = scratch_layout(4096), bytes(range(16))
    assert block_path(tmp_path, layout, key) == BlockFolder(tmp_path, layout, sync=False).path(key)
