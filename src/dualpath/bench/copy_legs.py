"""One leg of a byte's way, and the CPU time that moving bytes over it costs: docs/design/copy-cost.md."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.core.layout import BlockLayout

N_LAYERS, BLOCK_TOKENS = 4, 64  # as the tiny model's blocks
KV_HEADS, DTYPE_BYTES = 2, 4
GB = 10**9

CpuNs = Callable[[], Awaitable[int]]


@dataclass(frozen=True)
class Leg:
    """`move` moves bytes with the code that the cluster moves them with, and returns how many.

    `peer_cpu_ns` tells the CPU time so far of the process at the other end; `after` tidies up, uncounted.
    """

    name: str
    move: Callable[[], Awaitable[int]]
    peer_cpu_ns: CpuNs | None = None
    after: Callable[[], Awaitable[None]] | None = None


class Figure(msgspec.Struct, frozen=True):
    """CPU seconds (user and system, all threads) a GB of a leg: median of the rounds, least and most beside it."""

    leg: str
    cpu_s_per_gb: float
    least: float
    most: float
    peer_cpu_s_per_gb: float | None  # of the other process; None: there is none


@dataclass
class _Rounds:
    own: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)


async def measure(legs: Sequence[Leg], rounds: int) -> list[Figure]:
    """All legs in turn, `rounds` times after one that does not count; what disturbs the machine disturbs all."""
    spent = [_Rounds() for _ in legs]
    for number in range(rounds + 1):
        for leg, figures in zip(legs, spent, strict=True):
            own, peer = await _once(leg)
            if number:
                figures.own.append(own)
                figures.peer.append(peer)
    return [
        Figure(
            leg.name, median(each.own), min(each.own), max(each.own), median(each.peer) if leg.peer_cpu_ns else None
        )
        for leg, each in zip(legs, spent, strict=True)
    ]  # fmt: skip


async def _once(leg: Leg) -> tuple[float, float]:
    """CPU seconds a GB of this process and of the peer."""
    peer_ns = await leg.peer_cpu_ns() if leg.peer_cpu_ns else 0
    own_ns = time.process_time_ns()
    moved_bytes = await leg.move()
    own_ns = time.process_time_ns() - own_ns
    peer_ns = await leg.peer_cpu_ns() - peer_ns if leg.peer_cpu_ns else 0
    if leg.after:
        await leg.after()
    return own_ns / moved_bytes, peer_ns / moved_bytes  # ns a byte are s a GB


def layout_of(block_bytes: int, name: str) -> BlockLayout:
    """A layout of tiny's shape with blocks of this size; ConfigError when it cannot be cut so."""
    unit = N_LAYERS * BLOCK_TOKENS * 2 * KV_HEADS * DTYPE_BYTES
    if block_bytes < unit or block_bytes % unit:
        raise ConfigError(
            f"blocks of {block_bytes} bytes do not divide into layers and heads; take a multiple of {unit}"
        )
    return BlockLayout(name, N_LAYERS, BLOCK_TOKENS, block_bytes // (N_LAYERS * BLOCK_TOKENS), "float32")
