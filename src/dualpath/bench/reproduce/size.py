"""How the quick set is smaller than the full one."""

from typing import Any

import msgspec

from dualpath.bench.reproduce.systems import READINGS, Reading

QUICK_TURNS = 10
QUICK_AGENTS = 512  # at most
QUICK_WORDS = (
    f"At most {QUICK_AGENTS} agents play their first {QUICK_TURNS} turns only, contexts are shorter than the paper's, "
    "first prompts are on storage, there are fewer points and readings, and the large clusters are smaller. Online rates "
    "are raised so that turns a second stay. Storage hardly binds then, and differences from the paper say little: run it "
    "without --quick."
)
_FULL_TURNS = 157  # of MaxLen 64K


def first_turns(quick: bool) -> dict[str, Any]:
    """Fields of a scenario: the quick set plays each agent's first turns, whose first prompts are on storage."""
    return {"turns": QUICK_TURNS, "warm": True} if quick else {}


def agents_of(full: int, quick: bool) -> int:
    """Of an offline run."""
    return min(full, QUICK_AGENTS) if quick else full


def readings(quick: bool) -> tuple[Reading, ...]:
    """Of the agent sets; the quick set shows the second one only where it is cheap."""
    return READINGS[:1] if quick else READINGS


class Arrivals(msgspec.Struct, frozen=True):
    """How long agents arrive in an online run, and by what their rate is multiplied where their turns are few."""

    seconds: float
    factor: float


def arrivals(quick: bool) -> Arrivals:
    """The rates of the quick set ask for as many turns a second as the full set's."""
    return Arrivals(90.0, _FULL_TURNS / QUICK_TURNS) if quick else Arrivals(3600.0, 1.0)
