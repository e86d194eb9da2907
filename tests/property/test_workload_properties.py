import os
import subprocess
import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.workload import Drawn, History, Session, Turn, Vocabulary, cut, planned_prompts, shrink
from dualpath.workload.content import materialize, prefix, shared_tokens, suffix
from dualpath.workload.hashes import block_prompt, runs_of
from dualpath.workload.model import planned_pieces
from dualpath.workload.statistics import workload_statistics

WORDS = Vocabulary(2**20)
PROGRAM = """
from hashlib import sha256
from dualpath.workload import generate
from dualpath.workload.content import materialize
digest = sha256()
for session in generate("paper-32k", 2, vocab=5000, seed=9):
    for turn in session.turns:
        digest.update(materialize(turn.append).tobytes() + str(turn.gen_tokens).encode())
print(digest.hexdigest())
"""


def digest(hash_seed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return run.stdout.strip()


def test_generated_workload_is_the_same_in_every_process() -> None:
    # The value pins the format: a change of it breaks the comparison with earlier results.
    assert digest("1") == digest("2") == PINNED


PINNED = "1760f9461a48dded269e6a2859f4569873d9397076b56bebbfc05c0e13cf2e85"


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    turns: list[Turn] = []
    for index in range(draw(st.integers(1, 6))):
        append = (Drawn(WORDS, f"a{draw(st.integers(0, 2))}", draw(st.integers(1, 90))),)
        keep = draw(st.none() | st.integers(0, 200))
        base = draw(st.none() | st.integers(0, index - 1)) if index else None
        turns.append(Turn(append, draw(st.integers(1, 40)), keep_tokens=keep, base=base))
    return Session("s", tuple(turns))


@given(session=sessions(), k=st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_shrink_is_monotone_and_keeps_turns(session: Session, k: int) -> None:
    small, smaller = shrink(session, k), shrink(session, k + 1)
    assert len(small.turns) == len(session.turns)
    lengths = [planned_prompts(s.turns) for s in (session, small, smaller)]
    for whole, part, less in zip(*lengths, strict=True):
        assert whole >= part >= less >= 1
    assert lengths[0] == planned_prompts(shrink(session, 1).turns)


@given(session=sessions(), bound=st.integers(1, 400))
@settings(max_examples=100, deadline=None)
def test_cut_never_exceeds_and_is_the_longest(session: Session, bound: int) -> None:
    kept = cut(session, max_context=bound)
    sizes = [p + t.gen_tokens for p, t in zip(planned_prompts(session.turns), session.turns, strict=True)]
    count = len(kept.turns)
    assert kept.turns == session.turns[:count] and all(size <= bound for size in sizes[:count])
    assert count == len(sizes) or sizes[count] > bound


@given(session=sessions())
@settings(max_examples=100, deadline=None)
def test_planned_prompts_are_what_a_replay_sends(session: Session) -> None:
    history = History(session)
    planned = planned_prompts(session.turns)
    for length, (_, pieces, output) in zip(planned, planned_pieces(session), strict=True):
        prompt = history.prompt()
        assert len(prompt) == length and prompt.tolist() == materialize(pieces).tolist()
        history.answered(output.ids())


@given(session=sessions(), block_tokens=st.sampled_from([1, 4, 16]))
@settings(max_examples=100, deadline=None)
def test_hits_equal_those_of_a_plain_search(session: Session, block_tokens: int) -> None:
    seen: list[list[int]] = []
    tokens = blocks = total = 0
    for _, pieces, output in planned_pieces(session):
        prompt = materialize(pieces).tolist()
        best = max((common(prompt, old) for old in seen), default=0)
        tokens, blocks, total = (
            tokens + best,
            blocks + best // block_tokens * block_tokens,
            total + len(prompt),
        )
        seen.append(prompt + output.ids().tolist())
    found = workload_statistics([session], block_tokens=block_tokens)
    assert (found.hit_tokens, found.hit_blocks) == (tokens / total, blocks / total)


def common(left: list[Any], right: list[Any]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


ids = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@given(left=ids, right=ids, block_tokens=st.integers(3, 20), k=st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_prefixes_are_equal_exactly_as_far_as_the_ids(
    left: list[int], right: list[int], block_tokens: int, k: int
) -> None:
    prompts = [
        block_prompt(runs_of(x), block_tokens, len(x) * block_tokens + 2, WORDS, scope="s", tail=f"t{i}")
        for i, x in enumerate((left, right))
    ]
    small = [tuple(piece.shrunk(k) for piece in prompt) for prompt in prompts]
    size = block_tokens // k
    a, b = (materialize(prompt).tolist() for prompt in small)
    assert common(a, b) // size == common(left, right)
    assert shared_tokens(*small) <= common(a, b)


@given(session=sessions(), at=st.integers(0, 300))
@settings(max_examples=50, deadline=None)
def test_prefix_and_suffix_divide_a_sequence(session: Session, at: int) -> None:
    pieces = tuple(piece for turn in session.turns for piece in turn.append)
    whole = materialize(pieces).tolist()
    assert materialize(prefix(pieces, at)).tolist() == whole[:at]
    assert materialize(suffix(pieces, at)).tolist() == whole[at:]
