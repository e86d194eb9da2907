"""A figure of the paper as data: the simulations it needs, the numbers they give, the plots they make."""

from collections.abc import Callable

import msgspec

from dualpath.bench.reproduce.measures import Measure
from dualpath.bench.reproduce.outcome import Missing, Results
from dualpath.bench.reproduce.plot import Plot
from dualpath.sim.scenario import Scenario


class Number(msgspec.Struct, frozen=True):
    """A number of the paper (None: it gives none) and how ours follows from simulations; names hold the unit."""

    name: str
    paper: float | None
    ours: Measure
    assumption: str


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Pure functions of what has been simulated so far; the last argument is whether it is the quick set.

    `scenarios` names what is needed next, known ones included: a search asks on when its earlier points are known, and
    is complete when it names only known ones.
    """

    name: str
    title: str
    setting: str  # what the paper measured, and what is run here
    scenarios: Callable[[Results, bool], list[Scenario]]
    numbers: Callable[[bool], list[Number]]
    plots: Callable[[Results, bool], list[Plot]]


class Row(msgspec.Struct, frozen=True):
    """A line of the table. difference = ours / paper - 1; None where either is."""

    figure: str
    name: str
    paper: float | None
    ours: float | None
    difference: float | None
    assumption: str


def rows(figure: Figure, results: Results, quick: bool) -> list[Row]:
    """Every number, also those whose simulation failed (ours is None and the assumption says why)."""
    return [_row(figure.name, number, results) for number in figure.numbers(quick)]


def _row(figure: str, number: Number, results: Results) -> Row:
    try:
        ours = float(number.ours(results))
    except Missing as missing:
        return Row(figure, number.name, number.paper, None, None, f"no number: {missing}. {number.assumption}".strip())
    difference = ours / number.paper - 1 if number.paper else None
    return Row(figure, number.name, number.paper, ours, difference, number.assumption)
