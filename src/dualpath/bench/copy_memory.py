"""Legs within one process: bare copy and checksum, and the agent's copies between arena and window."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from isal.isal_zlib import crc32

from dualpath.bench.copy_legs import Leg
from dualpath.core.layout import BlockLayout
from dualpath.node.arena import Arena
from dualpath.transport.memory import SharedMemory

MEMCPY = "memcpy"


@contextmanager
def arena_of(layout: BlockLayout, total_bytes: int) -> Iterator[Arena]:
    """An arena whose pages hold something; given back at the end."""
    arena = Arena(layout, total_bytes)
    arena.bytes[:] = 1
    try:
        yield arena
    finally:
        arena.close()


@contextmanager
def memory_legs(arena: Arena, other: Arena) -> Iterator[list[Leg]]:
    """Legs over equally large arenas."""
    layout = arena.layout
    with SharedMemory.create(2 * arena.slots * layout.layer_block_bytes, name="dualpath-window") as window:
        target = np.frombuffer(window.view, np.uint8)
        target[:] = 1
        yield [
            _leg(MEMCPY, lambda: _memcpy(arena, other)),
            _leg("checksum (CRC-32)", lambda: _checksum(arena)),
            _leg("arena -> arena, same node", lambda: _share(arena)),
            _leg("arena -> window, same node", lambda: _fill_window(arena, target)),
        ]


def _leg(name: str, work: Callable[[], int]) -> Leg:
    async def move() -> int:
        return work()

    return Leg(name, move)


def _memcpy(arena: Arena, other: Arena) -> int:
    size = arena.layout.block_bytes
    for start in range(0, arena.slots * size, size):
        np.copyto(other.bytes[start : start + size], arena.bytes[start : start + size])
    return arena.slots * size


def _checksum(arena: Arena) -> int:
    for slot in range(arena.slots):
        crc32(arena.slot(slot))
    return arena.slots * arena.layout.block_bytes


def _share(arena: Arena) -> int:
    """As ReadQueue does it for the second who wants a block, and Loader for a retained one."""
    half = arena.slots // 2
    for slot in range(half):
        arena.copy(slot, half + slot)
    return half * arena.layout.block_bytes


def _fill_window(arena: Arena, window: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> int:
    """As LayerStream does it for a batch that takes all of the window: layer after layer, the halves in turns."""
    layout, size = arena.layout, arena.layout.layer_block_bytes
    for layer in range(layout.n_layers):
        half = layer % 2 * arena.slots * size
        for slot in range(arena.slots):
            source = slot * layout.block_bytes + layer * size
            to = half + slot * size
            np.copyto(window[to : to + size], arena.bytes[source : source + size])
    return arena.slots * layout.block_bytes
