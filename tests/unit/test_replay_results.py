"""The figures of a run, by the definitions in docs/design/replay.md."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from dualpath.bench.agents import Replayed, TurnRecord
from dualpath.bench.counters import Cost, NodeSpent, Spent
from dualpath.bench.display import remarks, table
from dualpath.bench.results import (
    BytesRead,
    Divergence,
    Run,
    divergences,
    snic_max_over_avg,
    snic_utilisation,
    speedups,
    summarise,
    tokens_sha256,
    write_json,
)
from dualpath.core.ids import NodeId
from dualpath.core.report import Role

NAMED_KEYS = (
    "policy", "topology", "jct_s", "turns", "ttft_p50_s", "ttft_p99_s", "ttst_p50_s", "tpot_p50_s", "hit_rate",
    "snic_utilisation", "snic_max_over_avg", "bytes_read", "bytes_retained", "wire_bytes", "tokens_sha256",
    "divergences", "errors",
)  # fmt: skip


def turn(agent: int, number: int, tokens: list[int], gaps: list[float] | None = None, **fields: Any) -> TurnRecord:
    given = {"ttft_s": 1.0, "ttst_s": 0.1, "tpot_s": 0.01, "ended_s": 2.0, "prompt_tokens": 100, "cached_tokens": 64}
    return TurnRecord(agent=agent, turn=number, tokens=tokens, gaps=gaps or [0.5] * len(tokens), **{**given, **fields})


def node(name: str, read_bytes: int, *, busy_s: float = 1.0, retained: int = 0) -> NodeSpent:
    role = Role.PREFILL if name.startswith("p") else Role.DECODE
    return NodeSpent(NodeId(name), role, read_bytes, retained, int(busy_s * 1e9), 0)


def spent(*nodes: NodeSpent, any_read_s: float = 2.0) -> Spent:
    return Spent(list(nodes), int(any_read_s * 1e9), {"read:split": 2}, {})


ONE_TURN = Replayed(2.0, [2.0], [turn(0, 0, [1, 2])], [])


def run_of(policy: str, jct_s: float, pair: int = 0, **fields: Any) -> Run:
    replayed = msgspec.structs.replace(ONE_TURN, jct_s=jct_s, **fields)
    cost = Cost(spent(node("p0", 600), node("d0", 200)), {"engine": 1.0}, [], {})
    return summarise(policy, pair, "1P1D", replayed, ONE_TURN, cost, rate_bytes_per_s=400, block_tokens=64)


def test_a_run_has_every_figure_that_was_promised() -> None:
    replayed = Replayed(
        4.0, [4.0, 2.0], [turn(0, 0, [1, 2], ttft_s=1.0), turn(1, 0, [3, 4], ttft_s=3.0, ttst_s=None)], ["agent 1: x"]
    )
    cost = Cost(
        spent(node("p0", 600, busy_s=3, retained=7), node("d0", 200, busy_s=1)), {"engine": 1.0}, ["gateway"], {}
    )
    run = summarise("split", 0, "1P1D", replayed, replayed, cost, rate_bytes_per_s=400, block_tokens=64)
    shown = msgspec.to_builtins(run)
    assert set(NAMED_KEYS) <= set(shown)
    assert (run.turns, run.errors, run.restarted, run.wire_bytes) == (2, 1, ["gateway"], None)
    assert (run.ttft_p50_s, run.ttst_p50_s, run.agent_jct_mean_s, run.requests_per_s) == (2.0, 0.1, 3.0, 0.5)
    assert run.ttft_p99_s == pytest.approx(2.98)
    assert (run.hit_rate, run.hit_rate_blocks) == (0.64, 1.0)
    assert shown["bytes_read"] == {"prefill": 600, "decode": 200}
    assert (run.bytes_retained, run.snic_busy) == (7, {"p0": 0.75, "d0": 0.25})
    assert (run.snic_utilisation, run.snic_max_over_avg) == (0.5, 1.5)


def test_a_run_without_a_single_turn_is_still_a_result() -> None:
    nothing = Replayed(0.0, [], [], ["agent 0: lost"])
    cost = Cost(spent(node("p0", 0), node("d0", 0), any_read_s=0), {}, [], {})
    run = summarise("split", 0, "1P1D", nothing, nothing, cost, rate_bytes_per_s=400, block_tokens=64)
    assert [run.ttft_p50_s, run.hit_rate, run.snic_utilisation, run.snic_max_over_avg] == [None] * 4


def test_utilisation_counts_all_nodes_while_anything_is_read() -> None:
    use = spent(node("p0", 900), node("d0", 300), node("d1", 0), any_read_s=2.0)
    assert snic_utilisation(use, 400) == 1200 / (3 * 400 * 2)
    assert snic_utilisation(use, None) is None


def test_balance_is_over_the_nodes_that_may_read() -> None:
    use = spent(node("p0", 900), node("p1", 300), node("d0", 0))
    assert snic_max_over_avg(use, prefill_only=True) == 1.5
    assert snic_max_over_avg(use, prefill_only=False) == 2.25


def test_the_hash_is_over_all_ids_in_order() -> None:
    turns = [turn(0, 0, [1, 2]), turn(0, 1, [3]), turn(1, 0, [70_000])]
    ids = (1, 2, 3, 70_000)
    assert tokens_sha256(turns) == hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest()
    assert tokens_sha256(turns) != tokens_sha256(turns[::-1])


def test_a_session_diverges_once_at_its_first_difference() -> None:
    first = [turn(0, 0, [1, 2, 3], [0.9, 0.4, 0.9]), turn(0, 1, [4]), turn(1, 0, [5]), turn(1, 1, [6])]
    other = [turn(0, 0, [1, 9, 8], [0.9, 0.3, 0.9]), turn(0, 1, [7]), turn(1, 0, [5]), turn(1, 1, [7], [0.6])]
    assert divergences(first, other) == [Divergence(0, 0, 1, 0.3), Divergence(1, 1, 0, 0.5)]
    assert divergences(first, first) == []
    assert divergences(first[:1], [turn(0, 1, [4]), turn(2, 0, [1])]) == []  # turns that the first run lacks


def test_speedups_are_medians_over_pairs() -> None:
    runs = [run_of(p, s, i) for i, (a, b) in enumerate([(8, 4), (9, 3), (8, 2)]) for p, s in (("a", a), ("b", b))]
    assert speedups(runs) == {"a": 1.0, "b": 3.0}


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert msgspec.json.decode(file.read_bytes()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def printed(runs: list[Run]) -> str:
    console = Console(width=100, highlight=False)
    with console.capture() as capture:
        console.print(table(runs, speedups(runs)))
        for line in remarks(runs, speedups(runs)):
            console.print(line)
    return " ".join(capture.get().split())


def test_the_table_shows_medians_and_the_factor() -> None:
    runs = [run_of(p, s, i) for i in range(3) for p, s in (("prefill-only", 8.0 + i), ("unthrottled", 1.0))]
    text = printed(runs)
    assert "JCT │ 9.00 s │ 1.00 s" in text
    assert "speed-up │ 1.00 x │ 9.00 x" in text
    assert "unthrottled is 9.00 times as fast as prefill-only" in text
    assert "all runs gave the same tokens" in text


def test_the_remarks_tell_of_divergences_errors_and_deaths() -> None:
    run = run_of("split", 1.0, turns=[turn(0, 0, [1, 3], [0.5, 0.4])], errors=["agent 3, turn 1: lost"])
    run.restarted.append("engine p0/0")
    text = printed([run_of("prefill-only", 2.0), run])
    assert "1 sessions left the tokens of the first run, 1 of them where the two best logits" in text
    assert "split: agent 3, turn 1: lost" in text
    assert "split: engine p0/0 died during the run" in text


def test_undefined_figures_are_dashes() -> None:
    run = run_of("unthrottled", 1.0)
    run.snic_utilisation, run.bytes_read = None, BytesRead(0, 0)
    assert "SNIC utilisation │ - │" in printed([run])
