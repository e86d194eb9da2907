"""Contents of prompts as small descriptions: token ids are made only when a prompt is sent.

Traces mostly give lengths or block ids, no text. Their contents are slices of keyed random streams, so that
two places of a workload hold equal tokens exactly when they name the same slice of the same stream.
"""

import hashlib

import msgspec
import numpy as np
from numpy.typing import NDArray

from dualpath.core.errors import ConfigError

TokenArray = NDArray[np.uint32]
_WORDS_PER_COUNTER = 4  # Philox 4x64 makes four 64-bit words for each step of its counter


class Vocabulary(msgspec.Struct, frozen=True):
    """What drawn tokens look like: uniform over the ids [low, size), decided by `seed` and the stream's
    name alone.
    """

    size: int
    low: int = 32  # below are, in most tokenizers, the special ids
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.size <= 2**32:
            raise ConfigError(f"vocabulary [{self.low}, {self.size}) is empty or too large; give low < size <= 2**32")

    def draw(self, stream: str, first: int, count: int) -> TokenArray:
        """Tokens [first, first + count) of a stream; the same in every process and numpy version."""
        name = hashlib.blake2b(f"{self.seed}/{stream}".encode(), digest_size=16, person=b"dualpath-draw")
        generator = np.random.Philox(key=int.from_bytes(name.digest(), "little"))
        steps, skip = divmod(first, _WORDS_PER_COUNTER)
        words = generator.advance(steps).random_raw(skip + count)[skip:]
        # Scaling the upper half of a word avoids Generator.integers, whose stream numpy may change.
        return (self.low + ((words >> 32) * (self.size - self.low) >> 32)).astype(np.uint32)


class Given(msgspec.Struct, frozen=True, tag="given"):
    """Tokens known in advance (tokenized text), packed as little-endian uint32."""

    packed: bytes

    @property
    def tokens(self) -> int:
        """Length."""
        return len(self.packed) // 4

    def ids(self) -> TokenArray:
        """The token ids."""
        return np.frombuffer(self.packed, dtype="<u4").astype(np.uint32)

    def prefix(self, count: int) -> "Given":
        """The first `count` tokens."""
        return Given(self.packed[: 4 * count])

    def suffix(self, skip: int) -> "Given":
        """All but the first `skip` tokens."""
        return Given(self.packed[4 * skip :])

    def shrunk(self, k: int) -> "Given":
        """Every k-th token, at least one: texts that share a prefix still share the same fraction of it."""
        kept = self.ids()[::k][: shrunk_length(self.tokens, k)]
        return Given(kept.astype("<u4").tobytes())

    def shared(self, other: "Piece") -> int:
        """How many leading tokens are certainly equal, judged without looking at the tokens of different
        pieces.
        """
        return self.tokens if self is other or self == other else 0


class Drawn(msgspec.Struct, frozen=True, tag="drawn"):
    """Tokens [first, first + tokens) of a random stream.

    With `block_tokens` it is a run of blocks that a trace names by ids: block id b is the slice
    [b * block_tokens, (b + 1) * block_tokens) of its scope's stream, whatever prompt it is in.
    """

    vocabulary: Vocabulary
    stream: str
    tokens: int
    first: int = 0
    block_tokens: int = 0  # 0: a length, not blocks

    def ids(self) -> TokenArray:
        """The token ids."""
        return self.vocabulary.draw(self.stream, self.first, self.tokens)

    def prefix(self, count: int) -> "Drawn":
        """The first `count` tokens."""
        return msgspec.structs.replace(self, tokens=min(count, self.tokens))

    def suffix(self, skip: int) -> "Drawn":
        """All but the first `skip` tokens."""
        return msgspec.structs.replace(self, first=self.first + skip, tokens=self.tokens - skip)

    def shrunk(self, k: int) -> "Drawn":
        """A k-th of the length, at least one token; every block of a run shrinks by itself and keeps its
        identity.
        """
        if not self.block_tokens:
            return msgspec.structs.replace(self, tokens=shrunk_length(self.tokens, k))
        size = shrunk_length(self.block_tokens, k)
        blocks, rest = divmod(self.tokens, self.block_tokens)
        return msgspec.structs.replace(
            self,
            first=self.first // self.block_tokens * size,
            tokens=max(1, blocks * size + rest // k),
            block_tokens=size,
        )

    def shared(self, other: "Piece") -> int:
        """How many leading tokens are certainly equal."""
        if not isinstance(other, Drawn) or (self.stream, self.first) != (other.stream, other.first):
            return 0
        return min(self.tokens, other.tokens) if self.vocabulary == other.vocabulary else 0


Piece = Given | Drawn


def shrunk_length(tokens: int, k: int) -> int:
    """A k-th of a length; what was not empty keeps at least one token."""
    return max(1, tokens // k) if tokens else 0


def materialize(pieces: tuple[Piece, ...]) -> TokenArray:
    """The token ids of a sequence of pieces."""
    return np.concatenate([piece.ids() for piece in pieces]) if pieces else np.empty(0, np.uint32)


def total_tokens(pieces: tuple[Piece, ...]) -> int:
    """Length of a sequence of pieces."""
    return sum(piece.tokens for piece in pieces)


def prefix(pieces: tuple[Piece, ...], count: int) -> tuple[Piece, ...]:
    """The first `count` tokens of a sequence of pieces, or all where it has fewer."""
    for index, piece in enumerate(pieces):
        if count <= piece.tokens:
            return (*pieces[:index], piece.prefix(count)) if count else pieces[:index]
        count -= piece.tokens
    return pieces


def suffix(pieces: tuple[Piece, ...], skip: int) -> tuple[Piece, ...]:
    """A sequence of pieces without its first `skip` tokens."""
    for index, piece in enumerate(pieces):
        if skip < piece.tokens:
            return (piece.suffix(skip), *pieces[index + 1 :])
        skip -= piece.tokens
    return ()


def shared_tokens(left: tuple[Piece, ...], right: tuple[Piece, ...]) -> int:
    """A cheap lower bound of the common prefix of two sequences of pieces."""
    count = 0
    for a, b in zip(left, right, strict=False):
        same = a.shared(b)
        count += same
        if same < a.tokens or same < b.tokens:
            break
    return count
