"""From logits to tokens. Randomness is keyed by (seed, position), so a retried request repeats its tokens."""

import hashlib
from collections.abc import Sequence

import torch

from dualpath.core.request import Sampling


def sample_batch(
    logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]
) -> list[tuple[int, float]]:
    """(token, gap) for each row of `[batch, vocab]`; gap is the best logit minus the second best.

    `positions[i]` is the index of the token to choose in its sequence, prompt included.
    """
    best = torch.topk(logits.float(), 2, dim=-1)
    gaps = (best.values[:, 0] - best.values[:, 1]).tolist()
    tokens = best.indices[:, 0].tolist()
    for row, (sampling, position) in enumerate(zip(samplings, positions, strict=True)):
        if sampling.temperature > 0:
            tokens[row] = _draw(logits[row], sampling, uniform(sampling.seed, position))
    return list(zip(tokens, gaps, strict=True))


def sample(logits: torch.Tensor, sampling: Sampling, position: int) -> tuple[int, float]:
    """(token, gap) for one row of `[vocab]`; see sample_batch."""
    return sample_batch(logits[None], [sampling], [position])[0]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments only, on every machine."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8, person=b"dualpath-sample").digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def _draw(logits: torch.Tensor, sampling: Sampling, u: float) -> int:
    """Inverse of the cumulative distribution at `u`, likeliest first: temperature, then top_k, then top_p."""
    ranked, order = torch.sort(logits.double(), descending=True, stable=True)
    if sampling.top_k > 0:
        ranked = ranked[: sampling.top_k]
    # Minus the best before the division: a tiny temperature must not overflow.
    cumulative = torch.softmax((ranked - ranked[0]) / sampling.temperature, dim=0).cumsum(0)
    kept = 1 + int((cumulative[:-1] < sampling.top_p).sum())  # the shortest run of mass top_p, at least one
    mass = cumulative[:kept]
    rank = int(torch.searchsorted(mass, u * mass[-1], right=True))
    return int(order[min(rank, kept - 1)])
