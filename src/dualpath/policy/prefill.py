"""Which prefill engine takes the request at the head of the queue (paper section 5, "PE choice")."""

from collections.abc import Callable, Sequence

from dualpath.core.ids import EngineId
from dualpath.policy.loads import EngineLoad, Limits

PrefillPolicy = Callable[[Sequence[EngineLoad], Limits, int], EngineId | None]
"""(loads of all prefill engines, limits, choices made so far) -> engine, or None: the queue waits."""


def choose_prefill(loads: Sequence[EngineLoad], limits: Limits) -> EngineId | None:
    """The engine with the fewest tokens among those whose node has a short read queue, else among the rest.

    An engine above beta is overloaded and gets nothing; with all overloaded (or none at all) the answer is
    None and the queue stops there (FIFO). Ties go to the fewest requests, then to the first in `loads`.
    """
    able = [load for load in loads if load.tokens <= limits.beta_tokens]
    short_queue = [load for load in able if load.read_queue_tokens <= limits.alpha_tokens]
    best = min(short_queue or able, key=lambda load: (load.tokens, load.requests), default=None)
    return best.engine if best else None


def choose_round_robin(loads: Sequence[EngineLoad], turn: int) -> EngineId | None:
    """Each engine in turn, whatever its load: the paper's baseline. None only without engines."""
    return loads[turn % len(loads)].engine if loads else None


PREFILL_POLICIES: dict[str, PrefillPolicy] = {
    "least-tokens-short-queue": lambda loads, limits, turn: choose_prefill(loads, limits),
    "round-robin": lambda loads, limits, turn: choose_round_robin(loads, turn),
}
