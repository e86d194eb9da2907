import numpy as np
import pytest

from dualpath.core.errors import ConfigError
from dualpath.workload import (
    Drawn,
    Given,
    History,
    Session,
    Turn,
    Vocabulary,
    cut,
    first_turns,
    planned_prompts,
    shrink,
)

WORDS = Vocabulary(1000, 10, seed=3)


def given(*ids: int) -> tuple[Given, ...]:
    return (Given(np.asarray(ids, "<u4").tobytes()),)


def test_closed_loop_prompt_is_history_real_output_and_append() -> None:
    history = History(Session("a", (Turn(given(1, 2), 3), Turn(given(7), 1))))
    assert history.prompt().tolist() == [1, 2]
    history.answered([50, 51])
    assert history.prompt().tolist() == [1, 2, 50, 51, 7]


def test_kept_part_bases_and_full_prompts() -> None:
    turns = (
        Turn(given(1, 2, 3), 1),
        Turn(given(4), 1, keep_tokens=2),  # shrinks
        Turn(given(9), 1, keep_tokens=0),  # starts again
        Turn(given(5), 1, base=0),  # returns to the first conversation
        Turn(given(6), 1),
    )
    history, prompts = History(Session("a", turns)), []
    for answer in range(100, 105):
        prompts.append(history.prompt().tolist())
        history.answered([answer])
    assert prompts == [[1, 2, 3], [1, 2, 4], [9], [1, 2, 3, 100, 5], [1, 2, 3, 100, 5, 103, 6]]
    assert planned_prompts(turns) == [len(prompt) for prompt in prompts]


def test_history_holds_only_what_later_turns_need() -> None:
    turns = tuple(Turn(given(1), 1, base=0 if turn == 5 else None) for turn in range(9))
    history = History(Session("a", turns))
    for _ in turns:
        history.prompt()
        history.answered([2])
        assert len(history._held) <= 2
    assert not history._held


def test_answer_needs_a_prompt() -> None:
    with pytest.raises(RuntimeError):
        History(Session("a", (Turn(given(1), 1),))).answered([1])


@pytest.mark.parametrize(
    "fields", [{"gen_tokens": 0}, {"gap_s": -1.0}, {"keep_tokens": -1}, {"keep_tokens": 0, "append": ()}]
)
def test_impossible_turns_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Turn(**({"append": given(1), "gen_tokens": 1} | fields))


def test_a_turn_cannot_build_on_a_later_one() -> None:
    with pytest.raises(ConfigError, match="turn 0 builds on turn 0"):
        Session("a", (Turn(given(1), 1, base=0),))


def test_vocabulary_bounds_and_seed() -> None:
    ids = WORDS.draw("x", 0, 20_000)
    assert ids.min() == 10 and ids.max() == 999
    assert WORDS.draw("x", 7, 5).tolist() == ids[7:12].tolist()
    assert Vocabulary(1000, 10, seed=4).draw("x", 0, 8).tolist() != ids[:8].tolist()
    with pytest.raises(ConfigError):
        Vocabulary(32, 32)


def test_shrunk_texts_still_share_their_common_part() -> None:
    policy = range(100, 160)
    one, two = (given(*policy, *range(start, start + 40))[0].shrunk(10).ids().tolist() for start in (200, 300))
    assert one[:6] == two[:6] and one[6:] != two[6:] and len(one) == len(two) == 10


def test_shrunk_blocks_keep_their_identity() -> None:
    prompt = (Drawn(WORDS, "s", 64 * 3, 64 * 5, 64), Drawn(WORDS, "s", 64 * 2 + 20, 64 * 90, 64))
    small = [piece.shrunk(8) for piece in prompt]
    assert [(p.first, p.tokens, p.block_tokens) for p in small] == [(40, 24, 8), (720, 18, 8)]


def test_shrink_keeps_a_cut_between_turns_where_it_was() -> None:
    turns = (
        Turn(given(*range(95)), 7),
        Turn(given(*range(19)), 7, keep_tokens=95),
        Turn(given(1), 3, keep_tokens=102),
    )
    small = shrink(Session("a", turns), 10)
    assert [turn.keep_tokens for turn in small.turns] == [None, 9, 9]
    assert planned_prompts(small.turns) == [9, 10, 10]
    with pytest.raises(ConfigError):
        shrink(Session("a", turns), 0)


def test_cut_and_first_turns() -> None:
    session = Session("a", tuple(Turn(given(1, 2), 3) for _ in range(4)))  # prompts 2, 7, 12, 17
    assert len(cut(session, max_context=15).turns) == 3
    assert len(cut(session, max_context=14).turns) == 2
    assert len(first_turns(session, 1).turns) == 1
