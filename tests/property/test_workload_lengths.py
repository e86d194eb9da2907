import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError
from dualpath.workload import (
    PRESETS,
    Drawn,
    Session,
    Turn,
    Vocabulary,
    cut,
    first_turns,
    generate,
    planned_prompts,
    read_workload,
    shrink,
    workload_statistics,
)
from dualpath.workload.content import materialize
from dualpath.workload.lengths import SessionLengths, generated_lengths, session_lengths, shared_lengths, shortened
from dualpath.workload.model import planned_pieces

WORDS = Vocabulary(2**20)
TRACES = Path(os.environ.get("DUALPATH_TRACES", Path(__file__).parents[2].parent / "shared" / "traces"))


def rows(lengths: SessionLengths) -> list[list[float]]:
    assert lengths.prompt.dtype == lengths.gen.dtype == lengths.reuse.dtype == np.int32
    assert lengths.gap_s.dtype == np.float32 and len(lengths.gap_s) == len(lengths)
    return np.stack([lengths.prompt, lengths.gen, lengths.reuse, lengths.gap_s], axis=1).tolist()


def planned(session: Session) -> list[list[float]]:
    """A closed loop's rows by its own plan."""
    prompts = planned_prompts(session.turns)
    reuse = [0, *(p + t.gen_tokens for p, t in zip(prompts, session.turns, strict=True))]
    return [[p, t.gen_tokens, r, t.gap_s] for p, t, r in zip(prompts, session.turns, reuse, strict=False)]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_generated_lengths_equal_the_generated_sessions(preset: str) -> None:
    for index, session in enumerate(generate(preset, 3, vocab=9999, seed=5)):
        assert rows(generated_lengths(preset, index, 5)) == planned(session)


def test_session_lengths_of_a_generated_session_are_the_generated_lengths() -> None:
    session = first_turns(generate("paper-32k", 2, vocab=5000, seed=1)[1], 12)
    assert rows(session_lengths(session, 64)) == rows(generated_lengths("paper-32k", 1, 1).first_turns(12))


@pytest.mark.parametrize(("turns", "k", "bound"), [(None, 1, None), (20, 7, 900), (None, 1000, None), (5, 1, 3)])
def test_shortened_lengths_equal_shortened_sessions(turns: int | None, k: int, bound: int | None) -> None:
    for index, session in enumerate(generate("paper-48k", 2, vocab=5000, seed=2)):
        small = shrink(session if turns is None else first_turns(session, turns), k)
        small = small if bound is None else cut(small, max_context=bound)
        found = shortened(generated_lengths("paper-48k", index, 2), turns=turns, shrink=k, max_context=bound)
        assert rows(found) == planned(small)


def test_factors_scale_later_appends_and_generations() -> None:
    one, more = generated_lengths("paper-64k", 0, 0), generated_lengths("paper-64k", 0, 0, 3.0, 2.0)
    assert one.prompt[0] == more.prompt[0]
    assert np.abs((more.prompt - more.reuse - 3 * (one.prompt - one.reuse))[1:]).max() <= 2
    assert np.abs(more.gen - 2 * one.gen).max() <= 1


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="no preset"):
        generated_lengths("paper-1k", 0, 0)
    with pytest.raises(ConfigError, match="factors"):
        generated_lengths("paper-32k", 0, 0, append_factor=0)
    with pytest.raises(ConfigError, match="shrink by 0"):
        generated_lengths("paper-32k", 0, 0).shrink(0)
    restarted = Session("s", (Turn((Drawn(WORDS, "a", 9),), 2), Turn((Drawn(WORDS, "b", 9),), 2, keep_tokens=0)))
    with pytest.raises(ConfigError, match="shrink a trace's sessions"):
        session_lengths(restarted, 4).shrink(2)


def test_an_agent_is_cheap() -> None:
    generated_lengths("paper-64k", 0, 0)
    began = time.process_time()
    lengths = [generated_lengths("paper-64k", index, 0) for index in range(300)]
    assert time.process_time() - began < 0.3, "more than a millisecond an agent; 0.1 is usual"
    assert sum(s.prompt.nbytes + s.gen.nbytes + s.reuse.nbytes for s in lengths) == 300 * 157 * 12
    assert lengths[0].gap_s is lengths[1].gap_s, "all agents share their zero gaps"


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    turns: list[Turn] = []
    for index in range(draw(st.integers(1, 6))):
        append = (Drawn(WORDS, f"a{draw(st.integers(0, 2))}", draw(st.integers(1, 60))),)
        keep = draw(st.none() | st.integers(0, 120))
        base = draw(st.none() | st.integers(0, index - 1)) if index else None
        turns.append(Turn(append, draw(st.integers(1, 30)), keep_tokens=keep, base=base, gap_s=float(index)))
    return Session(f"s{draw(st.integers(0, 10**6))}", tuple(turns), start_s=float(draw(st.integers(0, 3))))


def searched(session: Session, seen: list[list[int]]) -> list[int]:
    """Reuse of each turn by a plain search of all histories so far, to which it adds its own."""
    found = []
    for _, pieces, output in planned_pieces(session):
        prompt = materialize(pieces).tolist()
        found.append(max((common(prompt, old) for old in seen), default=0))
        seen.append(prompt + output.ids().tolist())
    return found


def common(left: list[int], right: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


@given(session=sessions(), block_tokens=st.sampled_from([1, 4, 16]))
@settings(max_examples=80, deadline=None)
def test_reuse_is_what_a_plain_search_of_histories_finds(session: Session, block_tokens: int) -> None:
    lengths = session_lengths(session, block_tokens)
    assert lengths.prompt.tolist() == planned_prompts(session.turns)
    assert lengths.reuse.tolist() == searched(session, [])
    assert lengths.gap_s.tolist() == [turn.gap_s for turn in session.turns] and lengths.start_s == session.start_s


@given(several=st.lists(sessions(), min_size=1, max_size=3, unique_by=lambda s: s.id))
@settings(max_examples=40, deadline=None)
def test_reuse_across_sessions_goes_by_their_starts(several: list[Session]) -> None:
    seen: list[list[int]] = []
    expected = {session.id: searched(session, seen) for session in sorted(several, key=lambda s: s.start_s)}
    found = shared_lengths(several, 16)
    assert [lengths.reuse.tolist() for lengths in found] == [expected[session.id] for session in several]


def test_a_trace_whose_histories_shrink_has_the_hits_of_its_statistics() -> None:
    file = TRACES / "weka_claude_code_traces.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"no {file.name}; set DUALPATH_TRACES to the folder of traces")
    small = [shrink(first_turns(s, 40), 50) for s in read_workload(file, vocab=2**17, seed=0, limit_sessions=6)]
    lengths = [session_lengths(session, 8) for session in small]
    known = workload_statistics(small, block_tokens=8)
    assert known.requests == sum(map(len, lengths))
    reuse, prompt = (sum(int(getattr(s, name).sum()) for s in lengths) for name in ("reuse", "prompt"))
    assert reuse / prompt == pytest.approx(known.hit_tokens)
    assert any(not session.is_closed_loop() for session in lengths)
