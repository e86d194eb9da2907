"""Runs are sequences: whatever is asked of them, a tuple of the same numbers answers the same."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.runs import Runs

runs = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=5)


@settings(max_examples=150, deadline=None)
@given(runs, st.integers(-30, 30), st.slices(20))
def test_runs_answer_as_a_tuple_does(parts: list[tuple[int, int]], number: int, cut: slice) -> None:
    some, plain = Runs(parts), tuple(n for start, length in parts for n in range(start, start + length))
    assert tuple(some) == plain
    assert (len(some), bool(some)) == (len(plain), bool(plain))
    assert (number in some) == (number in plain)
    assert some[cut] == plain[cut]
    assert some == plain
    assert some != (*plain, 1)
    if -len(plain) <= number < len(plain):
        assert some[number] == plain[number]
    else:
        try:
            some[number]
        except IndexError:
            return
        raise AssertionError("an index out of range was answered")


@settings(max_examples=50, deadline=None)
@given(runs)
def test_equal_numbers_are_equal_however_they_are_cut(parts: list[tuple[int, int]]) -> None:
    single = Runs([(n, 1) for n in Runs(parts)])
    assert (single, hash(single)) == (Runs(parts), hash(Runs(parts)))
