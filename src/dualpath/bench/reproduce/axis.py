"""Axes: round ticks, and from values to places."""

import math
from collections.abc import Sequence

import msgspec


class Axis(msgspec.Struct, frozen=True):
    """`low`..`high` shown on `start`..`end` (in the picture's units), with ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear_axis(values: Sequence[float], start: float, end: float, low: float | None = None) -> Axis:
    """Over all values, or from `low`; ends at ticks."""
    least = min(values) if low is None else low
    most = max([*values, least])
    if most - least <= 1e-9 * max(abs(least), abs(most), 1e-9):
        most = least + (abs(least) if abs(least) > 1e-9 else 1.0)
    step = _step(most - least)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def log_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Over positive values that are themselves the ticks: powers of something."""
    ticks = tuple(sorted(set(values)))
    low, high = ticks[0], ticks[-1]
    return Axis(low / 1.15, high * 1.15, start, end, ticks, log=True)


def category_axis(count: int, start: float, end: float) -> Axis:
    """0..count - 1, half a place free at both ends."""
    return Axis(-0.5, count - 0.5, start, end, tuple(float(i) for i in range(count)))


def tick_text(value: float) -> str:
    """Short, without noise."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _step(span: float) -> float:
    """A round step that gives four to eight ticks."""
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if raw <= factor * power * 1.0001)
