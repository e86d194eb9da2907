"""How the quick set is smaller than the full one."""

from typing import Any

import msgspec

from dualpath.bench.reproduce.systems import READINGS, Reading

QUICK_TURNS = 10
QUICK_AGENTS = 512  # at most
QUICK_SNIC = "128Gbit/s"  # of 400: the first 10 turns' contexts are a third of a whole session's
QUICK_WORDS = (
    f"At most {QUICK_AGENTS} agents play their first {QUICK_TURNS} turns only, whose contexts are a third of the "
    f"paper's; so storage NICs have {QUICK_SNIC}. First prompts are on storage. There are fewer points and readings; "
    "large clusters are smaller; online agents arrive for minutes instead of hours, at rates that ask for as many "
    "turns a second. What is seen is the direction. For the paper's numbers run it without --quick."
)
_FULL_TURNS = 157  # of MaxLen 64K


def first_turns(quick: bool) -> dict[str, Any]:
    """Fields of a scenario: the quick set plays each agent's first turns, with storage NICs as much slower."""
    return {"turns": QUICK_TURNS, "warm": True, "snic": QUICK_SNIC} if quick else {}


def agents_of(full: int, quick: bool) -> int:
    """Of an offline run."""
    return min(full, QUICK_AGENTS) if quick else full


def readings(quick: bool) -> tuple[Reading, ...]:
    """Of the agent sets; the quick set shows the second one only where it is cheap."""
    return READINGS[:1] if quick else READINGS


class Arrivals(msgspec.Struct, frozen=True):
    """What stands for an hour of arrivals in an online run; by what their rate is multiplied where turns are few."""

    hour_s: float
    factor: float


def arrivals(quick: bool) -> Arrivals:
    """The rates of the quick set ask for as many turns a second as the full set's."""
    return Arrivals(60.0, _FULL_TURNS / QUICK_TURNS) if quick else Arrivals(3600.0, 1.0)
