"""Token messages in any order, repeated and overlapping, become one sequence."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.ids import RequestId
from dualpath.core.request import Tokens
from dualpath.scheduler.zmq_client import TokenSequence


def message(start: int, stop: int) -> Tokens:
    """The tokens of a deterministic generation: token i is 100 + i, its gap i / 2."""
    return Tokens(RequestId("r"), start, [100 + i for i in range(start, stop)], [i / 2 for i in range(start, stop)])


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, list[Tokens]]:
    """All tokens of [0, n) in pieces, some of them again in other pieces, shuffled."""
    n = draw(st.integers(1, 12))
    cuts = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=5))})
    pieces = [message(a, b) for a, b in pairwise(cuts)]
    for _ in range(draw(st.integers(0, 4))):
        a = draw(st.integers(0, n - 1))
        pieces.append(message(a, draw(st.integers(a, n))))
    return n, draw(st.permutations(pieces))


@settings(max_examples=200, deadline=None)
@given(arrivals())
def test_each_token_comes_once_and_in_order(given_: tuple[int, list[Tokens]]) -> None:
    n, messages = given_
    sequence = TokenSequence()
    ids: list[int] = []
    gaps: list[float] = []
    seen: set[int] = set()
    for tokens in messages:
        seen |= set(range(tokens.index, tokens.index + len(tokens.ids)))
        out = sequence.add(tokens)
        if out:
            assert out.index == len(ids)
            assert out.ids and len(out.ids) == len(out.gaps)
            ids += out.ids
            gaps += out.gaps
        ready = next(i for i in range(n + 1) if i not in seen)
        assert sequence.delivered == len(ids) == ready, "what can be delivered is, at once"
    assert ids == [100 + i for i in range(n)]
    assert gaps == [i / 2 for i in range(n)]
