"""A node's compute NIC, both directions, throttled to a rate: how one machine plays several (paper section
4).

Transfers pass in pieces, so that lanes interleave. While LAYERS pieces wait, BLOCKS pieces get one slot in
16: the high-priority lane of the paper, with a little kept against starvation.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

from dualpath.core.pacing import LinkClock
from dualpath.core.units import NS_PER_S
from dualpath.transport.base import Lane

PIECE_BYTES = 256 * 1024
_LAYERS_IN_A_ROW = 15  # while BLOCKS wait
_AHEAD = 1  # pieces a transfer asks for beyond the one it waits for: a late wake-up then leaves no gap on the link
_YIELD_EVERY = 4  # pieces of an unlimited link between two turns of the event loop: at most 1 MiB


class Link:
    """One direction of a NIC. Belongs to one event loop."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self.unlimited = bytes_per_s is None
        self._clock = LinkClock(bytes_per_s)
        self._waiting: dict[Lane, deque[_Slot]] = {lane: deque() for lane in Lane}
        self._busy = False
        self._layers_in_a_row = 0

    async def carry(self, count: int, lane: Lane, move: Callable[[int], Awaitable[None]]) -> None:
        """Call `move(size)` for one piece of `count` bytes after the other, each when its slot has passed."""
        if self.unlimited:
            await _carry_at_once(count, move)
            return
        asked: deque[_Slot] = deque()
        try:
            for size in _pieces(count):
                asked.append(self._ask(size, lane))
                if len(asked) > _AHEAD:
                    await _finish(asked.popleft(), move)
            while asked:
                await _finish(asked.popleft(), move)
        finally:
            for slot in asked:
                slot.passed.cancel()

    def _ask(self, size: int, lane: Lane) -> "_Slot":
        slot = _Slot(size)
        self._waiting[lane].append(slot)
        if not self._busy:
            self._serve()
        return slot

    def _serve(self) -> None:
        """Give the link to the next piece; a slot starts when it was asked for or the link was free, not
        when we look.
        """
        self._busy = True
        while (slot := self._next()) is not None:
            left_ns = self._clock.reserve(slot.size, slot.asked_ns) - time.monotonic_ns()
            if left_ns > 0:
                asyncio.get_running_loop().call_later(left_ns / NS_PER_S, self._pass, slot)
                return
            slot.resolve()
        self._busy = False

    def _pass(self, slot: "_Slot") -> None:
        slot.resolve()
        self._serve()

    def _next(self) -> "_Slot | None":
        """LAYERS first, but BLOCKS at least once in 16; pieces of failed transfers are skipped."""
        for waiting in self._waiting.values():
            while waiting and waiting[0].passed.cancelled():
                waiting.popleft()
        layers, blocks = self._waiting[Lane.LAYERS], self._waiting[Lane.BLOCKS]
        if layers and not (blocks and self._layers_in_a_row >= _LAYERS_IN_A_ROW):
            self._layers_in_a_row += 1 if blocks else 0
            return layers.popleft()
        self._layers_in_a_row = 0
        return blocks.popleft() if blocks else None


class NicPair:
    """A node's compute NIC: `tx` and `rx` at the given rate each, or unlimited (None) at next to no cost."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self.tx = Link(bytes_per_s)
        self.rx = Link(bytes_per_s)

    async def pass_out(self, count: int, *, lane: Lane = Lane.BLOCKS) -> None:
        """Return when `count` bytes have left through the NIC."""
        await self.tx.carry(count, lane, _nothing)

    async def pass_in(self, count: int, *, lane: Lane = Lane.BLOCKS) -> None:
        """Return when `count` bytes have come in through the NIC."""
        await self.rx.carry(count, lane, _nothing)

    async def local_copy(self, count: int) -> None:
        """Charge the copy from a node's own arena into an engine's window, in the lane of layers.

        In the paper such copies go through the GPU's NIC too, so that its quality of service covers them.
        """
        await self.pass_in(count, lane=Lane.LAYERS)


class _Slot:
    """A piece that waits for the link, or passes it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked_ns = time.monotonic_ns()
        self.passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def resolve(self) -> None:
        if not self.passed.done():
            self.passed.set_result(None)


async def _finish(slot: _Slot, move: Callable[[int], Awaitable[None]]) -> None:
    await slot.passed
    await move(slot.size)


async def _carry_at_once(count: int, move: Callable[[int], Awaitable[None]]) -> None:
    for index, size in enumerate(_pieces(count), start=1):
        await move(size)
        if index % _YIELD_EVERY == 0:
            await asyncio.sleep(0)


def _pieces(count: int) -> Iterator[int]:
    for start in range(0, count, PIECE_BYTES):
        yield min(PIECE_BYTES, count - start)


async def _nothing(_: int) -> None:
    pass
