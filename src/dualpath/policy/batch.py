"""How much prefill goes into one batch: the compute quota (paper section 5, "PE batches").

Engines of a data-parallel group wait for each other in every layer: each should spend equal attention time.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations

import msgspec

from dualpath.core.errors import ConfigError, RequestError
from dualpath.core.ids import RequestId


class AttentionTime(msgspec.Struct, frozen=True):
    """Predicted attention time: costs of a chunk, of a new token, of a (query, key) pair; none negative."""

    chunk_ns: float
    token_ns: float
    pair_ns: float

    def predict_ns(self, cached: int, new: int) -> float:
        """Time of `new` tokens that follow `cached` ones; the i-th attends to about cached + i keys."""
        return self.chunk_ns + self.token_ns * new + self.pair_ns * (cached * new + new * new / 2)


class PrefillWork(msgspec.Struct, frozen=True):
    """A request with `cached_tokens` (hit and earlier chunks) and at least one token still to compute."""

    request: RequestId
    cached_tokens: int
    remaining_tokens: int

    @property
    def total_tokens(self) -> int:
        """The whole prompt."""
        return self.cached_tokens + self.remaining_tokens


class PrefillChunk(msgspec.Struct, frozen=True):
    """What one batch computes of one request. Only the last chunk of a request may end inside a block."""

    request: RequestId
    cached_tokens: int
    new_tokens: int
    last: bool


def fill_batch(
    queue: Sequence[PrefillWork],
    model: AttentionTime,
    quota_ns: int,
    *,
    block_tokens: int,
    window_tokens: int,
) -> list[PrefillChunk]:
    """Chunks from the head of the queue, in order, within the quota and the engine's one-layer window.

    Whole requests while they fit, then the largest chunk that fits of the next one. In the window a request
    takes its cached and new tokens, rounded up to blocks. The head of the queue always advances by a block
    (or its rest), even over the quota: else a long context, whose single block costs more than the quota,
    would never be served. The window is memory and never exceeded: RequestError when the head's whole prompt
    is larger (it is the one to fail).
    """
    if queue and _in_blocks(queue[0].total_tokens, block_tokens) > window_tokens // block_tokens:
        raise RequestError(
            f"a prompt of {queue[0].total_tokens} tokens does not fit the prefill window of "
            f"{window_tokens} tokens; shorten it or give the prefill engines a larger window"
        )
    chunks: list[PrefillChunk] = []
    left_ns, left_blocks = float(quota_ns), window_tokens // block_tokens
    for work in queue:
        new = _largest_chunk(
            work, model, left_ns, block_tokens=block_tokens, left_blocks=left_blocks, must_advance=not chunks
        )
        if new == 0:
            break
        chunks.append(PrefillChunk(work.request, work.cached_tokens, new, last=new == work.remaining_tokens))
        if new < work.remaining_tokens:
            break
        left_ns -= model.predict_ns(work.cached_tokens, new)
        left_blocks -= _in_blocks(work.total_tokens, block_tokens)
    return chunks


def _largest_chunk(
    work: PrefillWork,
    model: AttentionTime,
    left_ns: float,
    *,
    block_tokens: int,
    left_blocks: int,
    must_advance: bool,
) -> int:
    """New tokens of the largest chunk of `work` that fits, 0 for none: a binary search over block ends."""
    if work.remaining_tokens < 1 or work.cached_tokens < 0:
        raise ValueError(f"{work} has nothing to compute; at least the last token of a prompt is")
    first = work.cached_tokens // block_tokens + 1  # the blocks in use after the smallest chunk
    whole = _in_blocks(work.total_tokens, block_tokens)

    def new_tokens(blocks: int) -> int:
        return min(blocks * block_tokens, work.total_tokens) - work.cached_tokens

    def too_large(blocks: int) -> bool:
        return blocks > left_blocks or model.predict_ns(work.cached_tokens, new_tokens(blocks)) > left_ns

    fitting = bisect_right(range(first, whole + 1), False, key=too_large)
    if fitting == 0 and not must_advance:
        return 0
    return new_tokens(first + max(fitting, 1) - 1)


def _in_blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)


def fit_attention_time(samples: Sequence[tuple[int, int, int]]) -> AttentionTime:
    """The model nearest to measured (cached tokens, new tokens, ns): least squares, no negative coefficient.

    Exact arithmetic, as the columns differ by many orders of magnitude. When the samples leave a choice (all
    of one size), the model with the fewest terms is taken. ConfigError without samples.
    """
    if not samples:
        raise ConfigError("no measured chunks to fit the attention time to; profile the engine first")
    rows = [(1, new, new * (2 * cached + new)) for cached, new, _ in samples]
    gram = [[sum(row[i] * row[j] for row in rows) for j in range(3)] for i in range(3)]
    moments = [sum(row[i] * sample[2] for row, sample in zip(rows, samples, strict=True)) for i in range(3)]
    chunk_ns, token_ns, half_pair_ns = max(_fits(gram, moments), key=lambda fit: _explained(fit, moments))
    return AttentionTime(float(chunk_ns), float(token_ns), float(2 * half_pair_ns))


def _explained(fit: Sequence[Fraction], moments: Sequence[int]) -> Fraction:
    """By how much a least-squares solution lowers the sum of squares."""
    return sum((coefficient * moment for coefficient, moment in zip(fit, moments, strict=True)), Fraction(0))


def _fits(gram: list[list[int]], moments: list[int]) -> Iterator[list[Fraction]]:
    """Least-squares solutions without negative coefficients, for each choice of terms.

    The best of them is the best of all: the optimum is the free solution on the terms that it uses.
    """
    for size in range(len(moments) + 1):
        for used in combinations(range(len(moments)), size):
            solution = _solve([[Fraction(gram[i][j]) for j in used] + [Fraction(moments[i])] for i in used])
            if solution is not None and all(coefficient >= 0 for coefficient in solution):
                fit = dict(zip(used, solution, strict=True))
                yield [fit.get(i, Fraction(0)) for i in range(len(moments))]


def _solve(rows: list[list[Fraction]]) -> list[Fraction] | None:
    """Gauss-Jordan on an augmented matrix; None when it is singular. (Gram matrices need no pivoting.)"""
    for i in range(len(rows)):
        if rows[i][i] == 0:
            return None
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]
