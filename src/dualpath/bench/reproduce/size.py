"""How the quick set is smaller than the full one."""

from typing import Any

import msgspec

QUICK_TURNS = 24
QUICK_WORDS = (
    f"Agents play their first {QUICK_TURNS} turns only (contexts are then shorter than the paper's) and find their "
    "first prompts on storage; there are fewer points, and the large clusters are smaller. Online rates are raised so "
    "that turns a second stay. Differences from the paper say little: run it without --quick."
)


def first_turns(quick: bool) -> dict[str, Any]:
    """Fields of a scenario: the quick set plays each agent's first turns, whose first prompts are on storage."""
    return {"turns": QUICK_TURNS, "warm": True} if quick else {}


class Arrivals(msgspec.Struct, frozen=True):
    """How long agents arrive in an online run, and by what their rate is multiplied where their turns are few."""

    seconds: float
    factor: float


def arrivals(quick: bool) -> Arrivals:
    """The rates of the quick set ask for as many turns a second as the full set's."""
    return Arrivals(600.0, 157 / QUICK_TURNS) if quick else Arrivals(3600.0, 1.0)
