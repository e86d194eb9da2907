"""The copy-cost bench at tiny sizes: every leg of this host is measured, and nothing is left behind."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dualpath.bench.copy_cost import CopyCost, table_of
from dualpath.bench.copy_legs import Figure, layout_of
from dualpath.bench.copy_peer import block_transfers, layer_transfers
from dualpath.core.errors import ConfigError

ALWAYS = {
    "memcpy",
    "checksum (CRC-32)",
    "arena -> window, same node",
    "file, page cache, read",
    "file, no page cache, read",
    "file, page cache, write",
    "shm: layer blocks, fetch",
    "tcp: full blocks, fetch",
    "tcp: new KV of a layer, push",
    "arena -> KV cache",
    "KV cache -> arena, generated",
    "new KV -> window",
}


def run(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dualpath.bench.copy_cost", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "100"})


def test_measures_every_leg_and_leaves_nothing(tmp_path: Path) -> None:
    folder, result = tmp_path / "blocks", tmp_path / "cost.json"
    folder.mkdir()
    done = run(
        "--block", "64KiB", "--total", "2MiB", "--rounds", "1", "--folder", str(folder), "--json", str(result)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    figures = {figure["leg"]: figure for figure in json.loads(result.read_text())["figures"]}
    assert figures.keys() >= ALWAYS
    for leg, figure in figures.items():
        assert 0 < figure["cpu_s_per_gb"] < math.inf
        assert (figure["peer_cpu_s_per_gb"] is not None) == leg.startswith(("shm:", "tcp:", "nixl:"))
        assert leg in done.stdout
    assert figures["tcp: full blocks, fetch"]["peer_cpu_s_per_gb"] > 0


def test_wrong_input_is_one_plain_line() -> None:
    done = run("--block", "1000")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("copy_cost: blocks of 1000 bytes do not divide")


def test_a_layout_is_cut_as_the_tiny_model_is() -> None:
    layout = layout_of(512 << 10, "m")
    assert (layout.block_bytes, layout.layer_block_bytes, layout.kv_bytes_per_token) == (512 << 10, 128 << 10, 8 << 10)
    with pytest.raises(ConfigError, match="multiple of"):
        layout_of((512 << 10) + 1, "m")


@pytest.mark.parametrize("slots", [1, 8, 33])
def test_transfers_cover_every_byte_once(slots: int) -> None:
    layout = layout_of(64 << 10, "m")
    for transfers in (block_transfers(layout, slots), layer_transfers(layout, slots, 8)):
        for side in (0, 1):
            ranges = sorted((r.offset, r.length) for transfer in transfers for r in transfer[side])
            ends = [offset + length for offset, length in ranges]
            assert [offset for offset, _ in ranges] == [0, *ends[:-1]]
            assert ends[-1] == slots * layout.block_bytes


def test_the_table_counts_both_ends_in_memcpys() -> None:
    figures = [Figure("memcpy", 0.2, 0.1, 0.3, None), Figure("tcp: x", 0.5, 0.4, 0.6, 0.7)]
    table = table_of(CopyCost(1, 1, 1, figures, []))
    assert list(table.columns[-1].cells) == ["1.0", "6.0"]
