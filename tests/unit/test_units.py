"""Quantities as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError
from dualpath.core.units import format_bit_rate, format_bytes, parse_bytes, parse_rate


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("20MB", 20_000_000),
        ("64MiB", 2**26),
        ("1.5 GiB", 3 * 2**29),
        (" 7kb ", 7000),
        ("0", 0),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20MB/s", 20_000_000),
        ("1.5GiB/s", 3 * 2**29),
        ("15 mb /s", 15_000_000),
        ("4096", 4096),
        ("100Mbit/s", 12_500_000),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


def test_rates_of_lines_are_shown_in_bits() -> None:
    assert format_bit_rate(8e8) == "800 Mbit/s" and format_bit_rate(4e11) == "400 Gbit/s"


@pytest.mark.parametrize("text", ["none", "off", "Unlimited", " NONE "])
def test_no_limit(text: str) -> None:
    assert parse_rate(text) is None


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "20 apples", "1e3", "20MB/h", "20MB/s"])
def test_wrong_sizes_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="64MiB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0", "0MB/s", "0.1"])
def test_a_rate_that_rounds_to_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="none"):
        parse_rate(text)


@settings(max_examples=50)
@given(st.integers(0, 10**15))
def test_plain_counts_are_kept_exactly(count: int) -> None:
    assert parse_bytes(str(count)) == count


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (23_040, "23 KB"), (2.5e12, "2.5 TB")])
def test_printing(count: float, text: str) -> None:
    assert format_bytes(count) == text
