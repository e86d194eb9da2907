"""The scheduler's two thresholds from measured rates (paper section 5)."""

import math

from dualpath.policy.loads import Limits

READ_QUEUE_S = 3.0  # alpha: a longer storage read queue is "long"
PROCESS_QUEUE_S = 5.0  # beta: an engine with more work is overloaded
UNLIMITED_TOKENS = 2**62


def limits_from_rates(read_tokens_per_s: float, process_tokens_per_s: float) -> Limits:
    """alpha and beta for a node that reads and an engine that processes this many tokens a second.

    At least 1 token each, so that an idle engine is never overloaded; an infinite rate means no limit.
    ValueError for negative rates and for what is not a number.
    """
    return Limits(
        alpha_tokens=_tokens_in(READ_QUEUE_S, read_tokens_per_s),
        beta_tokens=_tokens_in(PROCESS_QUEUE_S, process_tokens_per_s),
    )


def _tokens_in(seconds: float, tokens_per_s: float) -> int:
    if math.isnan(tokens_per_s) or tokens_per_s < 0:
        raise ValueError(f"a rate of {tokens_per_s} tokens a second; give 0 or more")
    return max(1, int(min(seconds * tokens_per_s, UNLIMITED_TOKENS)))
