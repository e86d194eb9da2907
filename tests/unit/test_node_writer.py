"""The write-back queue: parents first, bounded, skipping counted, idempotent, never stuck."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from dualpath.core.errors import StoreUnavailable
from dualpath.core.ids import NodeId
from dualpath.core.layout import BlockLayout
from dualpath.core.report import NodeStats, Role
from dualpath.core.wire import PersistItem
from dualpath.node import writer as writer_module
from dualpath.node.arena import Arena
from dualpath.node.writer import WriteQueue
from dualpath.store.memory import MemoryStore
from dualpath.store.wrapper import StoreWrapper

LAYOUT = BlockLayout(model="m", n_layers=2, block_tokens=4, token_bytes=8, dtype="float32")
SIZE = LAYOUT.block_bytes


def key(number: int) -> bytes:
    return (number + 1).to_bytes(16, "little")


def item(number: int, parent: int | None = None, slot: int | None = None) -> PersistItem:
    return PersistItem(number if slot is None else slot, key(number), b"" if parent is None else key(parent))


class SlowStore(StoreWrapper):
    """Writes wait for `gate`; those of `broken` keys fail."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(LAYOUT))
        self.gate = asyncio.Event()
        self.gate.set()
        self.written: list[bytes] = []
        self.running = self.most = 0
        self.broken: set[bytes] = set()

    async def write(self, key: bytes, block: memoryview) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
            if key in self.broken:
                raise StoreUnavailable("no space left on device")
            await self.inner.write(key, block)
            self.written.append(key)
        finally:
            self.running -= 1


class Bench:
    def __init__(self, store: SlowStore, arena: Arena, stats: NodeStats, share: int, concurrency: int) -> None:
        self.store, self.arena, self.stats = store, arena, stats
        self.ends: list[tuple[bytes, bool]] = []
        self.news = asyncio.Event()
        self.queue = WriteQueue(
            store, arena, stats, self.end,
            share=share, concurrency=concurrency, deadline_s=5.0,
        )  # fmt: skip

    def end(self, item: PersistItem, durable: bool) -> None:
        self.ends.append((item.key, durable))
        self.news.set()

    async def ended(self, count: int) -> None:
        while len(self.ends) < count:
            self.news.clear()
            await self.news.wait()


@asynccontextmanager
async def bench(*, share: int = 16, concurrency: int = 2) -> AsyncIterator[Bench]:
    store, arena = SlowStore(), Arena(LAYOUT, 32 * SIZE)
    for slot in range(32):
        arena.slot(slot)[:] = bytes([slot]) * SIZE
    b = Bench(store, arena, NodeStats(NodeId("d0"), Role.DECODE), share, concurrency)
    try:
        yield b
        assert b.stats.write_queue_blocks == 0
    finally:
        await b.queue.close()
        arena.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


def test_parents_are_durable_before_their_children_in_any_order_of_arrival() -> None:
    async def test() -> None:
        async with bench(concurrency=4) as b:
            for child in (3, 2, 1):
                b.queue.enqueue(1, item(child, child - 1))
            b.queue.enqueue(1, item(0))
            await b.ended(4)
            assert b.store.written == [key(n) for n in range(4)]
            assert all(durable for _, durable in b.ends)
            assert b.stats.written_bytes == 4 * SIZE

    run(test)


def test_at_most_so_many_writes_run() -> None:
    async def test() -> None:
        async with bench(concurrency=2) as b:
            b.store.gate.clear()
            for number in range(8):
                b.queue.enqueue(1, item(number))
            await asyncio.sleep(0.01)
            assert (b.store.most, b.stats.write_queue_blocks) == (2, 8)
            b.store.gate.set()
            await b.ended(8)
            assert b.store.most == 2

    run(test)


def test_what_outlives_its_grant_is_bounded_by_the_share_after_a_grace_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "GRACE_S", 0.05)

    async def test() -> None:
        async with bench(share=3, concurrency=2) as b:
            b.store.gate.clear()
            for number in range(6):
                b.queue.enqueue(1, item(number, number - 1 if number else None))
            b.queue.enqueue(2, item(9))
            b.queue.release(1)
            await asyncio.sleep(0.02)
            assert (b.ends, b.stats.write_queue_blocks) == ([], 7), "within the grace period nothing is given up"
            await b.ended(3)
            assert sorted(b.ends) == [(key(n), False) for n in (3, 4, 5)], "the newest go, children before parents"
            assert b.stats.writes_skipped == 3
            b.store.gate.set()
            await b.ended(7)
            assert sorted(b.store.written) == sorted(key(n) for n in (0, 1, 2, 9))

    run(test)


def test_a_stored_block_is_durable_at_once_and_moves_no_bytes() -> None:
    async def test() -> None:
        async with bench() as b:
            await b.store.inner.write(key(0), b.arena.slot(0))
            b.queue.enqueue(1, item(0))
            b.queue.enqueue(1, item(1, 0))
            b.queue.enqueue(1, item(1, 0, slot=5))  # a second request computed the same block
            await b.ended(3)
            assert all(durable for _, durable in b.ends)
            assert (b.stats.written_bytes, b.stats.writes_skipped) == (SIZE, 0)

    run(test)


def test_a_parent_that_another_node_writes_is_waited_for_and_holds_nobody_up() -> None:
    async def test() -> None:
        async with bench(concurrency=1) as b:
            b.queue.enqueue(1, item(1, 0))  # block 0 is written elsewhere
            b.queue.enqueue(1, item(9))
            await b.ended(1)
            assert b.ends == [(key(9), True)]
            await b.store.inner.write(key(0), b.arena.slot(0))
            await b.ended(2)
            assert b.ends[1] == (key(1), True)

    run(test)


def test_without_its_parent_a_block_is_skipped_and_its_children_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "PARENT_DEADLINE_S", 0.1)

    async def test() -> None:
        async with bench() as b:
            for number in (1, 2, 3):
                b.queue.enqueue(1, item(number, number - 1))
            await b.ended(3)
            assert not any(durable for _, durable in b.ends)
            assert b.stats.writes_skipped == 3
            assert b.store.written == []

    run(test)


def test_a_full_store_skips_with_one_warning_and_writing_goes_on_later(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with bench() as b:
            b.store.broken = {key(n) for n in range(3)}
            with caplog.at_level(logging.WARNING):
                for number in range(3):
                    b.queue.enqueue(1, item(number))
                b.queue.enqueue(1, item(3, 2))
                await b.ended(4)
            assert [durable for _, durable in b.ends] == [False] * 4
            assert b.stats.writes_skipped == 4
            assert len([r for r in caplog.records if "not persisted" in r.message]) == 1
            b.store.broken.clear()
            b.queue.enqueue(1, item(2))
            b.queue.enqueue(1, item(3, 2))
            await b.ended(6)
            assert [durable for _, durable in b.ends[4:]] == [True, True]

    run(test)


def test_abandoned_writes_touch_no_slot_any_more_and_nobody_is_told() -> None:
    async def test() -> None:
        async with bench(concurrency=1) as b:
            b.store.gate.clear()
            for number in range(4):
                b.queue.enqueue(1, item(number))
            await asyncio.sleep(0.01)
            await b.queue.abandon()
            assert b.store.running == 0
            assert (b.ends, b.stats.write_queue_blocks, b.stats.writes_skipped) == ([], 0, 4)
            b.store.gate.set()
            b.queue.enqueue(1, item(0))
            await b.ended(1)
            assert b.ends == [(key(0), True)]

    run(test)
