"""Stores that are full, foreign or damaged: requests are served with right tokens all the same."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from dualpath.core.keys import chain_keys, pack_tokens, root_key
from dualpath.core.served import served_spec
from dualpath.launch.local import LocalCluster
from dualpath.store.namespace import folder_of
from e2e.live_cluster import (
    Ask,
    ask_all,
    assert_equal_tokens,
    cluster,
    cluster_report,
    random_asks,
    wait_durable,
)

Reference = Callable[[Path, Sequence[Ask]], list[list[int]]]
SMALL_MIB, LARGE_MIB = 8, 64  # a block of the tiny model has half a MiB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of SMALL_MIB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount, for a disk that is really full")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def log_of(running: LocalCluster, role: str) -> str:
    return (Path(running.config.network.run_dir) / f"{role}.log").read_text()


def test_a_store_that_fills_up_costs_hits_only(tiny: Path, reference: Reference, small_disk: Path) -> None:
    asks = random_asks(41, 6, longest=600, tokens=40)
    expected = reference(tiny, asks)
    topology, lease = {"topology": "1P2D"}, {"lease_s": 2.0}
    with cluster(tiny, small_disk / "store", cluster=topology, limits=lease) as running:
        for _ in range(2):
            assert_equal_tokens(ask_all(running.url, asks), expected)
            report = wait_durable(running.url)
        time.sleep(2 * running.config.limits.heartbeat_s)  # counters come with the heartbeat
        report = cluster_report(running.url)
        assert sum(n.writes_skipped for n in report.nodes) > 0
        assert report.failed_requests == 0 and not report.recomputes
        assert "the disk is full: free some space" in log_of(running, "agent-d0") + log_of(running, "agent-d1")
        running.kill("agent d0")  # it cannot come back yet, which must not end a cluster that serves
        assert_equal_tokens(ask_all(running.url, asks), expected)
        for _ in range(200):
            running.check()
            if refused := "the store cannot be used" in log_of(running, "agent-d0"):
                break
            time.sleep(0.1)
        assert refused
        subprocess.run(["mount", "-o", f"remount,size={LARGE_MIB}m", str(small_disk)], check=True)
        running.wait_ready()
        for _ in range(2):
            answers = ask_all(running.url, asks)
            assert_equal_tokens(answers, expected)
            wait_durable(running.url)
        assert [a.cached for a in answers] == [(len(ask.prompt) - 1) // 64 * 64 for ask in asks]


def plant_foreign_objects(running: LocalCluster, asks: Sequence[Ask]) -> None:
    """Under the keys of the prompts' blocks and beside them: nothing, text, bytes of the right size."""
    layout = served_spec(running.config).layout
    namespace = folder_of(Path(running.config.storage.path), layout)
    size = next(path.stat().st_size for path in namespace.glob("??/*"))
    for number, ask in enumerate(asks):
        for block, key in enumerate(chain_keys(root_key(layout), pack_tokens(ask.prompt), layout.block_tokens)):
            path = namespace / key.hex()[:2] / key.hex()
            kind = (number + block) % 4
            if kind < 3 and not path.exists():
                path.write_bytes((b"", b"some words", os.urandom(size))[kind])
    (namespace / "00" / "notes.txt").write_text("not a block")
    (namespace.parent / "lost+found").mkdir()


def test_blocks_of_another_layout_and_foreign_objects_are_no_hits(
    tiny: Path, reference: Reference, tmp_path: Path
) -> None:
    asks = random_asks(42, 5, longest=500, tokens=30)
    expected = reference(tiny, asks)
    with cluster(tiny, tmp_path) as first:
        assert_equal_tokens(ask_all(first.url, asks), expected)
        wait_durable(first.url)
        theirs = {p: p.read_bytes() for p in tmp_path.glob("*/??/*")}
    fresh = random_asks(43, 5, longest=500, tokens=30)
    with cluster(tiny, tmp_path, model={"block_tokens": 32}, scheduling={"window_tokens": 640}) as other:
        too_long = {"model": "tiny", "prompt": [40] * 640, "max_tokens": 1}
        refusal = httpx.post(f"{other.url}/v1/completions", json=too_long, timeout=10)
        assert refusal.status_code == 400 and "at most 640 tokens" in refusal.text, "longer than the window"
        answers = ask_all(other.url, asks[:1])
        assert_equal_tokens(answers, expected[:1])
        assert answers[0].cached == 0, "a block of another layout was a hit"
        wait_durable(other.url)
        warnings = [line for line in log_of(other, "scheduler").splitlines() if "WARNING" in line]
        assert any(f"{len(theirs)} blocks of model" in line and "64 tokens a block" in line for line in warnings)
        plant_foreign_objects(other, fresh)
        other.kill("scheduler")  # its successor takes what it finds for hits
        time.sleep(1)
        other.wait_ready()
        for _ in range(2):
            assert_equal_tokens(ask_all(other.url, fresh), reference(tiny, fresh))
            report = wait_durable(other.url)
        assert report.recomputes, "nothing planted was taken for a hit"
        assert report.failed_requests == 0
    assert all(path.read_bytes() == data for path, data in theirs.items()), "another layout's block was touched"
