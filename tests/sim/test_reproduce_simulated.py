"""A reproduction's work on the real simulator, small."""

from pathlib import Path

from typer.testing import CliRunner

from dualpath.bench.reproduce.systems import BASIC, DUALPATH, SMALL, scenario
from dualpath.bench.reproduce.work import run
from dualpath.cli.main import app


def test_an_outcome_of_the_simulator_holds_what_figures_need() -> None:
    small = scenario(DUALPATH, SMALL, "paper-32k", 16, turns=2)
    heard: list[int] = []
    outcome = run(small, heard.append)
    assert outcome.error == ""
    assert outcome.turns == sum(heard) == 32
    assert outcome.jct_s > 0 and outcome.ttft_s and outcome.tpot_s and outcome.agent_jct_mean_s
    assert outcome.snic is not None and outcome.attention is not None


def test_what_cannot_be_simulated_is_said() -> None:
    outcome = run(scenario(BASIC, SMALL, "no-such-set", 4), lambda turns: None)
    assert "no workload 'no-such-set'" in outcome.error


def test_the_command_writes_rows_and_report(tmp_path: Path) -> None:
    html, json = tmp_path / "report.html", tmp_path / "rows.json"
    arguments = [
        "reproduce",
        "cache-compute",
        "--html",
        str(html),
        "--json",
        str(json),
        "--cache",
        str(tmp_path / "kept"),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "10 numbers of the paper" in " ".join(done.output.split())
    assert "<svg" in html.read_text() and '"assumption"' in json.read_text()
