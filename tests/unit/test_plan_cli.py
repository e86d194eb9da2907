"""The plan command, end to end, in this process."""

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from dualpath.cli.main import app
from dualpath.core.hostprofile import HostProfile, Link, MemoryRates, Storage

PAPER = ["--context", "32700", "--append", "429", "--gen", "176", "--turns", "157"]


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "120"})


def test_the_paper_s_cluster() -> None:
    result = plan("paper-64k", "--agents", "1024")
    assert result.exit_code == 0, result.output
    for words in ("2P4D", "prefill-only", "split", "oracle", "0.143", "3.5", "Yes: on 2P4D"):
        assert words in result.output


def test_all_ratios_and_json(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    result = plan(*PAPER, "--model", "deepseek-27b", "--nodes", "3", "--json", str(file))
    assert result.exit_code == 0, result.output
    content = json.loads(file.read_text())
    assert [row["topology"] for row in content["rows"]] == ["1P2D", "2P1D"]
    assert content["best"] in ("1P2D", "2P1D")
    assert content["answer"][0] in " ".join(result.output.split())
    assert content["bounds"]["low"] == pytest.approx(1 / 7)


def test_rates_of_a_doctor_s_profile(tmp_path: Path) -> None:
    host = HostProfile(
        dualpath_version="0", host="h", measured_at="2026-01-01T00:00:00Z", cores=8, memory_bytes=1 << 34,
        shm_bytes=1 << 33, memory=MemoryRates(1e9, 2e9, 1e9),
        storage=Storage("ext4", 1 << 20, 50e6, "O_DIRECT", 4, []),
        links=[Link("peer", "tcp", "network", 1 << 20, 100e6, [], [])],
    )  # fmt: skip
    file, out = tmp_path / "host.json", tmp_path / "plan.json"
    file.write_bytes(msgspec.json.encode(host))
    arguments = (*PAPER, "--model", "deepseek-27b", "--topology", "1P1D", "--profile", str(file), "--json", str(out))
    assert plan(*arguments).exit_code == 0
    # g = 8, s = 0.5, M/(B*s) = 80: DRAM is twice what is copied
    bounds = json.loads(out.read_text())["bounds"]
    assert bounds["low"] == pytest.approx(0.5 / 7.5)
    assert bounds["high"] == pytest.approx(min((8 - 0.5) / 1, (4e9 / 50e6 - 3) / 2))
    assert plan(*arguments, "--cnic", "1GB/s").exit_code == 0
    assert json.loads(out.read_text())["bounds"]["low"] == pytest.approx(0.05 / 7.95)


def test_one_node() -> None:
    result = plan("paper-64k", "--nodes", "1")
    assert result.exit_code == 0
    assert "No: one node has one storage NIC" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paper-63k"], "no workload 'paper-63k'"),
        (["--context", "100"], "--append, --gen, --turns are missing"),
        ([], "--context, --append, --gen, --turns are missing"),
        (["paper-64k", "--turns", "3"], "not both"),
        (["paper-64k", "--nodes", "3", "--topology", "1P2D"], "not both"),
        (["paper-64k", "--topology", "1D"], "2P4D"),
        (["paper-64k", "--topology", "1P1D"], "take more nodes of this role"),
        (["paper-64k", "--model", "none"], "'none'"),
        (["paper-64k", "--hardware", "none"], "'none'"),
        (["paper-64k", "--snic", "fast"], "'fast'"),
        (["paper-64k", "--storage", "fast"], "'fast'"),
        (["paper-64k", "--profile", "/nowhere.json"], "cannot read --profile"),
        (["paper-64k", "--profile", __file__], "no JSON profile"),
        ([*PAPER, "--simulate"], "name a workload"),
    ],
)
def test_errors_say_what_to_do(arguments: list[str], words: str) -> None:
    result = plan(*arguments)
    assert result.exit_code != 0
    assert words in str(result.exception)


def test_simulated_beside_the_closed_form(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    arguments = ("--model", "deepseek-27b", "--topology", "1P1D", "--agents", "2", "--json", str(file))
    result = plan("paper-32k", *arguments, "--simulate")
    assert result.exit_code == 0, result.output
    content = json.loads(file.read_text())
    assert content["answer"][0].startswith("No: on 1P1D nothing binds")
    assert [run["system"] for run in content["simulated"]] == ["prefill-only", "split"]
    for run in content["simulated"]:
        assert 0.5 < run["requests_per_s"] / run["predicted_requests_per_s"] < 1.1


def test_help_teaches() -> None:
    text = plan("--help").output
    for words in ("whether both read paths help", "--nodes", "--profile", "Examples"):
        assert words in text
