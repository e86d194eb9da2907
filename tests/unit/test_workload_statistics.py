import os
from pathlib import Path

import numpy as np
import pytest

from dualpath.core.errors import ConfigError
from dualpath.workload import (
    PRESETS,
    cut,
    generate,
    poisson_starts,
    read_workload,
    shrink,
    workload_statistics,
)
from dualpath.workload.content import Drawn, Vocabulary
from dualpath.workload.model import Session, Turn, planned_prompts

TRACES = Path(os.environ.get("DUALPATH_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
WORDS = Vocabulary(50_000)


def trace(name: str) -> Path:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"{name} is not there; set DUALPATH_TRACES to the folder of traces")
    return path


def text(name: str, tokens: int, first: int = 0) -> tuple[Drawn, ...]:
    return (Drawn(WORDS, name, tokens, first),)


def test_hits_within_and_across_sessions_by_hand() -> None:
    one = Session("one", (Turn(text("a", 100), 28), Turn(text("b", 10), 5)))  # prompts 100, 138
    two = Session("two", (Turn(text("a", 100), 1),))
    alone = workload_statistics([one, two])
    assert (alone.sessions, alone.requests, alone.turns) == (2, 3, 1.5)
    assert (alone.total_tokens, alone.context_tokens) == ((143 + 101) / 2, (100 + 138 + 100) / 3)
    assert alone.append_tokens == 10 and alone.gen_tokens == 34 / 3
    assert alone.hit_tokens == 128 / 338 and alone.hit_blocks == 128 / 338
    both = workload_statistics([one, two], across_sessions=True)
    assert both.hit_tokens == 228 / 338 and both.hit_blocks == 192 / 338


def test_hit_of_a_restart_and_of_interleaved_prompts() -> None:
    turns = (
        Turn(text("a", 130), 1),
        Turn(text("b", 130), 1, keep_tokens=0),
        Turn((*text("a", 129), *text("c", 71)), 1, keep_tokens=0),
    )
    assert workload_statistics([Session("s", turns)]).hit_tokens == 129 / 460


@pytest.mark.parametrize("name", ["paper-32k", "paper-48k", "paper-64k"])
def test_generated_agents_have_the_papers_means(name: str) -> None:
    preset = PRESETS[name]
    agents = generate(name, 500, vocab=50_000)
    prompts = [planned_prompts(agent.turns) for agent in agents]
    totals = [last[-1] + agent.turns[-1].gen_tokens for last, agent in zip(prompts, agents, strict=True)]
    gens = [turn.gen_tokens for agent in agents for turn in agent.turns]
    assert all(len(agent.turns) == preset.turns for agent in agents)
    assert np.mean(totals) == pytest.approx(preset.total_tokens, rel=0.02)
    assert np.mean([np.mean(own) for own in prompts]) == pytest.approx(preset.context_tokens, rel=0.02)
    assert np.mean(gens) == pytest.approx(preset.gen_tokens, rel=0.02)
    assert np.std(gens) > 0.2 * preset.gen_tokens


def test_generated_64k_agents_have_the_papers_hit_rate() -> None:
    found = workload_statistics(generate("paper-64k", 50, vocab=50_000))
    assert found.request_hit_blocks == pytest.approx(0.987, abs=0.003)  # the mean over requests is what fits
    assert found.hit_blocks == pytest.approx(0.987, abs=0.01)  # by tokens it is 0.993


def test_append_presets_follow_the_tables_append() -> None:
    agents = generate("paper-64k-append", 40, vocab=50_000)
    appends = [turn.append_tokens for agent in agents for turn in agent.turns[1:]]
    assert sum(appends) / len(appends) == pytest.approx(429, rel=0.02)
    assert workload_statistics(agents[:10]).total_tokens == pytest.approx(9484 + 157 * 176 + 156 * 429, rel=0.04)


def test_first_prompt_of_64k_and_shared_prompt() -> None:
    assert PRESETS["paper-64k"].first_prompt_tokens == 9484
    one, two = generate("paper-64k", 2, vocab=50_000, shared_prompt_tokens=500)
    first, second = (agent.turns[0].append for agent in (one, two))
    assert (
        first[0] == second[0] and first[0].tokens == 500 and first[1].ids()[:9].tolist() != second[1].ids()[:9].tolist()
    )
    plain = generate("paper-64k", 1, vocab=50_000)[0]
    assert plain.turns[0].append_tokens == one.turns[0].append_tokens


def test_generate_refuses_what_it_cannot_make() -> None:
    with pytest.raises(ConfigError, match="paper-64k"):
        generate("paper-1m", 1, vocab=50_000)
    with pytest.raises(ConfigError):
        generate("paper-32k", 1, vocab=50_000, shared_prompt_tokens=5000)


def test_poisson_starts() -> None:
    starts = poisson_starts(4000, 0.5, seed=1)
    assert starts == sorted(starts) == poisson_starts(4000, 0.5, seed=1) != poisson_starts(4000, 0.5, seed=2)
    assert starts[-1] / 4000 == pytest.approx(2.0, rel=0.05)
    with pytest.raises(ConfigError):
        poisson_starts(1, 0, seed=1)


def test_trace_of_lengths_is_near_the_table() -> None:
    # The table counts 500 sessions, the file holds 362 of them: means agree to a few percent only.
    sessions = read_workload(trace("miniswe_gemini3pro_lengths.jsonl.gz"), vocab=50_000)
    found = workload_statistics(sessions)
    assert (found.sessions, found.requests) == (362, 14_367)
    assert found.turns == pytest.approx(40, rel=0.03)
    assert found.total_tokens == pytest.approx(22_500, rel=0.03)
    assert found.context_tokens == pytest.approx(14_900, rel=0.01)
    assert found.append_tokens == pytest.approx(271, rel=0.03)  # here with the template's 4 tokens a turn
    assert found.gen_tokens == pytest.approx(247, rel=0.02)
    assert found.hit_blocks == pytest.approx(0.977, abs=0.001)


def test_trace_of_local_ids_is_near_the_table() -> None:
    # The file holds a part of the table's sessions. Cut at 64K, the sessions with 10 requests or more.
    sessions = read_workload(trace("weka_claude_code_traces.jsonl.gz"), vocab=50_000)
    small = [s for s in (cut(session, max_context=65_536) for session in sessions) if len(s.turns) >= 10]
    found = workload_statistics(small)
    assert found.sessions == 234
    assert found.turns == pytest.approx(28, rel=0.06)
    assert found.total_tokens == pytest.approx(60_400, rel=0.01)
    assert found.context_tokens == pytest.approx(43_700, rel=0.01)
    assert found.append_tokens == pytest.approx(1_840, rel=0.02)
    assert found.gen_tokens == pytest.approx(364, rel=0.05)
    assert found.hit_blocks == pytest.approx(0.943, abs=0.002)
    assert workload_statistics([shrink(s, 8) for s in small], block_tokens=8).hit_blocks == pytest.approx(
        0.943, abs=0.003
    )


def test_trace_of_global_ids_is_as_the_table() -> None:
    sessions = read_workload(trace("mooncake_conversation_trace.jsonl"), vocab=50_000)
    found = workload_statistics([shrink(s, 8) for s in sessions], block_tokens=64, across_sessions=True)
    assert found.requests == 12_031
    assert found.sessions == pytest.approx(8_056, rel=0.01)  # inferred, there and here
    assert found.context_tokens * 8 == pytest.approx(12_035, rel=0.001)
    assert found.gen_tokens * 8 == pytest.approx(343, rel=0.02)
    assert found.hit_blocks == pytest.approx(0.374, abs=0.002)


@pytest.mark.parametrize(
    ("name", "turns"), [("lmcache_miniswe.jsonl.gz", 402), ("taubench_gpt4o_airline.jsonl.gz", 2454)]
)
def test_text_traces_by_letters(name: str, turns: int) -> None:
    # Hit rates need the tokenizer of the table; the number of requests does not.
    sessions = read_workload(trace(name), vocab=300, tokenize=lambda text: list(text.encode()))
    assert sum(len(session.turns) for session in sessions) == turns
    assert len(sessions) == {402: 20, 2454: 200}[turns]
    closed_loop = all(turn.keep_tokens is None for session in sessions for turn in session.turns)
    assert closed_loop == (turns == 2454)  # the flattened trace leaves answers out of later prompts


def test_text_trace_agrees_with_its_lengths() -> None:
    text = read_workload(
        trace("miniswe_gemini3pro_text.jsonl.gz"),
        vocab=300,
        limit_sessions=8,
        tokenize=lambda t: list(t.encode()),
    )
    counts = {s.id: len(s.turns) for s in read_workload(trace("miniswe_gemini3pro_lengths.jsonl.gz"), vocab=300)}
    assert [len(s.turns) for s in text] == [counts[s.id] for s in text]
