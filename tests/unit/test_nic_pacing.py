"""The throttled NIC: rates, both directions, lanes, and what failed transfers leave behind."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from dualpath.transport.base import Lane
from dualpath.transport.nic import PIECE_BYTES, Link, NicPair

RATE = 64 * PIECE_BYTES  # a piece takes 16 ms


def _timed(test: Callable[[], Awaitable[None]]) -> float:
    async def run() -> float:
        began = time.monotonic()
        await test()
        return time.monotonic() - began

    return asyncio.run(run())


def _recorder(log: list[str], name: str) -> Callable[[int], Awaitable[None]]:
    async def move(_: int) -> None:
        log.append(name)

    return move


@pytest.mark.parametrize("count", [1000, PIECE_BYTES, 10 * PIECE_BYTES + 1])
def test_a_direction_takes_its_time(count: int) -> None:
    async def test() -> None:
        nics = NicPair(RATE)
        await asyncio.gather(nics.pass_out(count), nics.pass_in(count))

    took = _timed(test)
    assert count / RATE <= took < count / RATE + 0.15, "directions are independent"


def test_transfers_share_a_direction() -> None:
    async def test() -> None:
        nics = NicPair(RATE)
        await asyncio.gather(*(nics.pass_in(PIECE_BYTES) for _ in range(5)), nics.local_copy(5 * PIECE_BYTES))

    assert _timed(test) >= 10 * PIECE_BYTES / RATE


def test_a_late_wake_up_leaves_no_gap() -> None:
    """Each move keeps the loop busy for half of a piece's time; the link goes on meanwhile."""

    async def busy(_: int) -> None:
        time.sleep(0.5 * PIECE_BYTES / RATE)  # noqa: ASYNC251 (a busy loop is the point)

    async def test() -> None:
        await Link(RATE).carry(20 * PIECE_BYTES, Lane.BLOCKS, busy)

    assert _timed(test) < 1.45 * 20 * PIECE_BYTES / RATE


def test_unlimited_takes_no_slots_but_lets_the_loop_live() -> None:
    async def test() -> None:
        log: list[str] = []
        carry = Link(None).carry(40 * PIECE_BYTES, Lane.BLOCKS, _recorder(log, "piece"))
        task = asyncio.create_task(carry)
        await asyncio.sleep(0)
        assert 0 < len(log) < 40
        await task
        assert len(log) == 40

    assert _timed(test) < 0.2


def test_pieces_add_up() -> None:
    async def test() -> None:
        sizes: list[int] = []

        async def move(size: int) -> None:
            sizes.append(size)

        for rate in (None, 10**9):
            sizes.clear()
            await Link(rate).carry(2 * PIECE_BYTES + 5, Lane.LAYERS, move)
            assert sizes == [PIECE_BYTES, PIECE_BYTES, 5]

    _timed(test)


def test_layers_go_first_and_blocks_get_one_in_sixteen() -> None:
    async def test() -> None:
        link = Link(4 * RATE)  # slow, so that a held-up process does not run out of asked pieces of layers
        log: list[str] = []
        blocks = link.carry(10 * PIECE_BYTES, Lane.BLOCKS, _recorder(log, "blocks"))
        layers = [link.carry(16 * PIECE_BYTES, Lane.LAYERS, _recorder(log, "layers")) for _ in range(4)]
        await asyncio.gather(blocks, *layers)
        while_layers = log[: len(log) - log[::-1].index("layers")]
        assert 3 <= while_layers.count("blocks") <= 6, "64 pieces of layers let about 4 of blocks through"
        assert log[-1] == "blocks"

    _timed(test)


def test_failed_transfers_leave_the_link_free() -> None:
    async def fail(_: int) -> None:
        raise ConnectionResetError

    async def test() -> None:
        link = Link(RATE)
        with pytest.raises(ConnectionResetError):
            await link.carry(100 * PIECE_BYTES, Lane.LAYERS, fail)
        task = asyncio.create_task(link.carry(100 * PIECE_BYTES, Lane.LAYERS, _recorder([], "")))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        await link.carry(PIECE_BYTES, Lane.BLOCKS, _recorder([], ""))

    assert _timed(test) < 0.5
