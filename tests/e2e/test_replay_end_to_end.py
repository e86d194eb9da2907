"""The replay command against real clusters: equal tokens, equal bytes, complete figures, nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 200
SMALL = ("--model", "tiny", "--arena", "256MiB", "--seed", "3")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for everything temporary; its path is short, as it will hold unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="dp-"))
    yield folder
    shutil.rmtree(folder)


def left_behind(scratch: Path) -> list[Path]:
    return list(scratch.glob("dualpath-*"))  # torch makes an empty folder of its own


def start(scratch: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dualpath", "replay", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip


def replay(scratch: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON and the printed text of a replay that ends well; nothing temporary is left."""
    out = scratch / "results" / "out.json"
    process = start(scratch, *arguments, "--json", str(out))
    try:
        text, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert errors == "", "without a terminal there is no progress display"
    assert left_behind(scratch) == []
    return json.loads(out.read_text()), text


def test_policies_are_compared_on_equal_terms(scratch: Path) -> None:
    result, text = replay(
        scratch, "paper-64k", *SMALL, "--read-policy", "prefill-only,unthrottled", "--topology", "1P1D",
        "--snic", "30MB/s", "--agents", "3", "--turns", "3", "--shrink", "16",
    )  # fmt: skip
    runs = result["runs"]
    assert [run["policy"] for run in runs] == ["prefill-only", "unthrottled"]
    assert all((run["turns"], run["errors"], run["restarted"], run["recomputes"]) == (9, 0, [], {}) for run in runs)
    assert len({run["tokens_sha256"] for run in runs}) == 1 or any(run["divergences"] for run in runs)
    assert all(gap["logit_gap"] <= 1e-3 for run in runs for gap in run["divergences"])

    sides = [run["bytes_read"] for run in runs]
    moved = [side["prefill"] + side["decode"] + run["bytes_retained"] for side, run in zip(sides, runs, strict=True)]
    assert len(set(moved)) == 1 and moved[0] > 0
    assert sides[0]["decode"] == 0 < sides[1]["decode"]
    assert runs[0]["hit_rate"] == runs[1]["hit_rate"] > 0.8, "first contexts are warm"
    assert 0.3 < runs[0]["snic_utilisation"] < 0.51  # half of the NICs; a short run on a noisy machine
    assert runs[1]["snic_utilisation"] is None
    assert result["speedup"]["prefill-only"] == 1.0
    assert "unthrottled is " in text and "times as fast as prefill-only" in text


def test_cold_online_pairs_of_a_trace(scratch: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [[[300, 5, 300, None], [70, 5, 375, 0.1]], [[200, 7, 200, None], [90, 3, 297, 0.1]]]
    trace.write_text("\n".join(json.dumps({"id": f"s{i}", "turns": turns}) for i, turns in enumerate(rows)))
    result, _ = replay(
        scratch, str(trace), *SMALL, "--read-policy", "shorter-queue", "--agents", "2", "--cold", "--aps", "5",
        "--pairs", "2",
    )  # fmt: skip
    runs = result["runs"]
    assert [(run["pair"], run["turns"], run["errors"]) for run in runs] == [(0, 4, 0), (1, 4, 0)]
    # cold: only second turns hit, what the first turns wrote: 4 and 3 whole blocks
    assert [run["hit_rate"] for run in runs] == pytest.approx([7 * 64 / (300 + 375 + 200 + 297)] * 2)


def test_an_interrupted_replay_leaves_nothing(scratch: Path) -> None:
    process = start(scratch, "paper-64k", *SMALL, "--shrink", "16", "--agents", "2")
    try:
        deadline_s = time.monotonic() + 60
        while not list(scratch.glob("dualpath-run-*/gateway.log")):
            assert time.monotonic() < deadline_s and process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode not in (0, None)
    assert left_behind(scratch) == []


def test_a_session_that_the_cluster_cannot_hold_is_wrong_input(scratch: Path) -> None:
    process = start(
        scratch, "paper-64k", "--model", "tiny", "--arena", "4MiB", "--shrink", "8", "--agents", "1", "--turns", "2",
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 2
    assert errors.count("\n") == 1 and "raise --arena" in errors
    assert left_behind(scratch) == []
