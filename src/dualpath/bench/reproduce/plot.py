"""What a plot shows, without how: names, units, points."""

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from dualpath.bench.reproduce.outcome import Missing

Point = tuple[float, float]
Colour = Literal["basic", "dualpath", "oracle", "fourth", "fifth", "sixth", "seventh"]


class Curve(msgspec.Struct, frozen=True):
    """Points of one name. `dashed`: the second reading of the agent sets. `paper`: the paper's, marked only.
    Not `marked`: a line without marks, for many points."""

    name: str
    points: list[Point]
    colour: Colour
    dashed: bool = False
    paper: bool = False
    marked: bool = True


class Bound(msgspec.Struct, frozen=True):
    """A horizontal line with a name: a service level."""

    name: str
    y: float


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """Lines over numbers, or (with `categories`) bars: a point's x is then an index into them."""

    title: str
    x_label: str
    y_label: str
    curves: list[Curve]
    categories: tuple[str, ...] = ()
    bounds: tuple[Bound, ...] = ()
    log_x: bool = False
    log_y: bool = False
    y_from: float = 0.0
    y_most: float | None = None  # the axis ends there; points above it are left out


def points(xs: Iterable[float], y: Callable[[float], float]) -> list[Point]:
    """(x, y(x)), without those that are missing: the table names them."""
    found: list[Point] = []
    for x in xs:
        try:
            found.append((x, y(x)))
        except Missing:
            continue
    return found
