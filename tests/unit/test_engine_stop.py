from pathlib import Path

import pytest
from tokenizers import Tokenizer

from dualpath.core.errors import RequestError
from dualpath.engine.stop import StopMatcher
from dualpath.engine.tiny import parse_shape, write_tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tiny")
    write_tiny(parse_shape("tiny:layers=1,hidden=16,intermediate=16,head_dim=8"), folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def stops_at(tokenizer: Tokenizer, data: bytes, *stop: str) -> int | None:
    """Index of the byte token at which the matcher stops."""
    matcher = StopMatcher(tokenizer, stop)
    return next((index for index, token in enumerate(data) if matcher.push(token)), None)


@pytest.mark.parametrize(
    ("text", "stop", "index"),
    [
        ("one two three", ("two",), 6),
        ("one two three", ("four", "eth"), None),
        ("one two three", ("x", "e"), 2),
        ("aaab", ("aab",), 3),
        ("naïve – ok", ("ï",), 3),
        ("naïve – ok", ("– o",), 11),
        ("🙂🙃", ("🙃",), 7),
    ],
)
def test_stops_at_the_token_that_completes_a_stop_string(
    tokenizer: Tokenizer, text: str, stop: tuple[str, ...], index: int | None
) -> None:
    assert stops_at(tokenizer, text.encode(), *stop) == index


def test_bytes_that_are_no_text_do_not_hide_what_follows(tokenizer: Tokenizer) -> None:
    assert stops_at(tokenizer, b"\xff\xfe\x80\x80\x80\x80\x80 END", "END") == 10
    assert stops_at(tokenizer, b"\xf0\x9fEND", "END") == 4


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    matcher = StopMatcher(tokenizer, ("ab", "end"))
    assert [matcher.push(token) for token in (ord("a"), 258, ord("b"))] == [False, False, True]


def test_without_stop_strings_nothing_stops(tokenizer: Tokenizer) -> None:
    assert stops_at(tokenizer, b"anything") is None


def test_empty_stop_string_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="empty"):
        StopMatcher(tokenizer, ("",))


def test_memory_stays_bounded(tokenizer: Tokenizer) -> None:
    matcher = StopMatcher(tokenizer, ("never",))
    for token in b"\x80" * 300 + b"text" * 300:
        matcher.push(token)
    assert len(matcher._ids) <= 8
    assert len(matcher._tail) < 5
