"""The read queue: order, bounded concurrency, one read a block, cancelled places, failures, deadlines."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from dualpath.core.errors import BlockCorrupt, BlockMissing, StoreUnavailable
from dualpath.core.ids import NodeId
from dualpath.core.layout import BlockLayout
from dualpath.core.rate import RateMeter
from dualpath.core.report import NodeStats, Role
from dualpath.node.arena import Arena
from dualpath.node.reader import ReadQueue
from dualpath.store.memory import MemoryStore
from dualpath.store.wrapper import StoreWrapper

LAYOUT = BlockLayout(model="m", n_layers=2, block_tokens=4, token_bytes=8, dtype="float32")
SIZE = LAYOUT.block_bytes


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def content(number: int) -> bytes:
    return bytes((number * 7 + i) % 256 for i in range(SIZE))


class GatedStore(StoreWrapper):
    """Reads wait for `gate`; keeps their order and how many ran at once."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(LAYOUT))
        self.gate = asyncio.Event()
        self.started: list[bytes] = []
        self.deleted: list[bytes] = []
        self.running = self.most = 0
        self.stubborn = False  # a cancelled read ends only when the gate opens
        self.bug: Exception | None = None

    async def read(self, key: bytes, into: memoryview) -> None:
        self.started.append(key)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            while not self.gate.is_set():
                try:
                    await self.gate.wait()
                except asyncio.CancelledError:
                    if not self.stubborn:
                        raise
            if self.bug:
                raise self.bug
            await self.inner.read(key, into)
        finally:
            self.running -= 1

    async def delete(self, key: bytes) -> None:
        self.deleted.append(key)
        await self.inner.delete(key)


class Bench:
    def __init__(self, store: GatedStore, arena: Arena, stats: NodeStats, queue: ReadQueue, lost: list[bytes]) -> None:
        self.store, self.arena, self.stats, self.queue, self.lost = store, arena, stats, queue, lost


@asynccontextmanager
async def bench(*, concurrency: int = 2, deadline_s: float = 5.0, blocks: int = 8) -> AsyncIterator[Bench]:
    store, arena, stats = GatedStore(), Arena(LAYOUT, 32 * SIZE), NodeStats(NodeId("p0"), Role.PREFILL)
    for number in range(blocks):
        await store.inner.write(key(number), memoryview(content(number)))
    lost: list[bytes] = []
    queue = ReadQueue(store, arena, stats, lost.append, concurrency=concurrency, deadline_s=deadline_s)
    try:
        yield Bench(store, arena, stats, queue, lost)
        store.gate.set()
        await settled()
        assert stats.read_queue_blocks == 0, "a place in the queue was never given up"
    finally:
        await queue.close()
        arena.close()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


def test_reads_are_first_come_first_served_and_bounded() -> None:
    async def test() -> None:
        async with bench(concurrency=2) as b:
            reads = [b.queue.submit(1, slot, key(slot)) for slot in range(6)]
            await settled()
            assert b.store.started == [key(0), key(1)]
            assert b.stats.read_queue_blocks == 6
            b.store.gate.set()
            assert await asyncio.gather(*reads) == [SIZE] * 6
            assert b.store.started == [key(n) for n in range(6)]
            assert b.store.most == 2
            assert all(bytes(b.arena.slot(n)) == content(n) for n in range(6))
            assert b.stats.read_bytes == 6 * SIZE

    run(test)


def test_wants_of_one_block_share_a_queued_or_running_read() -> None:
    async def test() -> None:
        async with bench(concurrency=1) as b:
            first, queued = b.queue.submit(1, 0, key(0)), b.queue.submit(1, 1, key(1))
            await settled()
            running_shared, queued_shared = b.queue.submit(2, 2, key(0)), b.queue.submit(2, 3, key(1))
            b.store.gate.set()
            assert await asyncio.gather(first, queued, running_shared, queued_shared) == [SIZE, SIZE, 0, 0]
            assert len(b.store.started) == 2
            assert [bytes(b.arena.slot(s)) for s in range(4)] == [content(n) for n in (0, 1, 0, 1)]
            assert (b.stats.reads_shared, b.stats.read_bytes) == (2, 2 * SIZE)

    run(test)


def test_a_cancelled_request_gives_up_its_places_in_the_queue() -> None:
    async def test() -> None:
        async with bench(concurrency=1) as b:
            b.queue.submit(1, 0, key(0))
            gone = [b.queue.submit(2, n, key(n)) for n in (1, 2)]
            stays = b.queue.submit(3, 3, key(3))
            await settled()
            b.queue.cancel(2)
            assert all(read.cancelled() for read in gone)
            assert b.stats.read_queue_blocks == 2
            await asyncio.wait_for(b.queue.drained(2), 1)  # nothing of it runs
            b.store.gate.set()
            assert await stays == SIZE
            assert b.store.started == [key(0), key(3)]

    run(test)


@pytest.mark.parametrize("cancelled", [1, 2])
def test_cancelling_one_of_two_that_share_a_read_leaves_the_other(cancelled: int) -> None:
    async def test() -> None:
        async with bench(concurrency=1) as b:
            reads = {1: b.queue.submit(1, 0, key(0)), 2: b.queue.submit(2, 1, key(0))}
            await settled()  # grant 1's slot is being filled
            b.queue.cancel(cancelled)
            other = 3 - cancelled
            drained = asyncio.ensure_future(b.queue.drained(cancelled))
            await settled()
            assert drained.done() == (cancelled == 2), "slot 0 is still being written"
            b.store.gate.set()
            await reads[other]
            await drained
            assert bytes(b.arena.slot(other - 1)) == content(0)
            assert reads[cancelled].cancelled()

    run(test)


def test_a_block_wanted_again_after_its_places_were_given_up_is_read() -> None:
    async def test() -> None:
        async with bench(concurrency=1) as b:
            b.queue.submit(1, 0, key(0))
            b.queue.submit(2, 1, key(1))
            await settled()
            b.queue.cancel(2)
            again = b.queue.submit(3, 2, key(1))
            b.store.gate.set()
            assert await again == SIZE
            assert bytes(b.arena.slot(2)) == content(1)

    run(test)


def test_a_failure_reaches_all_waiters_and_the_next_read_is_a_fresh_one() -> None:
    async def test() -> None:
        async with bench(concurrency=1) as b:
            reads = [b.queue.submit(grant, grant, key(99)) for grant in (1, 2, 3)]
            b.store.gate.set()
            outcomes = await asyncio.gather(*reads, return_exceptions=True)
            assert all(isinstance(o, BlockMissing) for o in outcomes)
            assert b.stats.read_errors == 1
            assert b.lost == [key(99)]
            await b.store.inner.write(key(99), memoryview(content(9)))
            assert await b.queue.submit(1, 1, key(99)) == SIZE

    run(test)


def test_a_corrupt_block_is_deleted_before_anybody_hears_of_it() -> None:
    async def test() -> None:
        async with bench() as b:
            objects = b.store.inner.objects  # type: ignore[attr-defined]
            objects[key(0)] = objects[key(0)][:-1] + b"\0"
            read = b.queue.submit(1, 0, key(0))
            read.add_done_callback(lambda _: seen.append((key(0) in objects, list(b.lost))))
            seen: list[tuple[bool, list[bytes]]] = []
            b.store.gate.set()
            with pytest.raises(BlockCorrupt):
                await read
            assert seen == [(False, [key(0)])]
            await b.store.write(key(0), memoryview(content(5)))  # a recomputed one takes its place
            assert await b.queue.submit(1, 0, key(0)) == SIZE
            assert bytes(b.arena.slot(0)) == content(5)

    run(test)


def test_a_lost_block_is_named_although_nobody_waits_for_it_any_more() -> None:
    async def test() -> None:
        async with bench() as b:
            objects = b.store.inner.objects  # type: ignore[attr-defined]
            objects[key(0)] = objects[key(0)][:-1] + b"\0"
            b.queue.submit(1, 0, key(0))
            b.queue.submit(1, 1, key(99))
            await settled()
            b.queue.cancel(1)
            b.store.gate.set()
            await b.queue.drained(1)
            assert key(0) not in objects
            assert sorted(b.lost) == [key(0), key(99)]

    run(test)


def test_an_unexpected_failure_is_told_and_the_workers_live_on() -> None:
    async def test() -> None:
        async with bench(concurrency=1) as b:
            b.store.bug = RuntimeError("a bug in a store")
            b.store.gate.set()
            with pytest.raises(StoreUnavailable, match="a bug in a store"):
                await b.queue.submit(1, 0, key(0))
            assert not b.lost
            b.store.bug = None
            assert await b.queue.submit(1, 0, key(0)) == SIZE

    run(test)


def test_waiters_hear_of_a_late_read_while_its_slot_stays_in_use() -> None:
    async def test() -> None:
        async with bench(concurrency=1, deadline_s=0.05) as b:
            b.store.stubborn = True
            read = b.queue.submit(1, 0, key(0))
            with pytest.raises(StoreUnavailable, match=r"longer than 0\.05 s"):
                await read
            b.queue.cancel(1)
            drained = asyncio.ensure_future(b.queue.drained(1))
            await settled()
            assert not drained.done()
            b.store.gate.set()
            await drained

    run(test)


def test_busy_time_counts_while_anything_waits_or_runs() -> None:
    async def test() -> None:
        async with bench() as b:
            await asyncio.sleep(0.02)
            assert b.queue.busy_ns() == 0
            read = b.queue.submit(1, 0, key(0))
            await asyncio.sleep(0.03)
            assert b.queue.busy_ns() >= 25_000_000
            b.store.gate.set()
            await read
            ended = b.queue.busy_ns()
            await asyncio.sleep(0.02)
            assert b.queue.busy_ns() == ended

    run(test)


def test_closing_cancels_what_was_not_read() -> None:
    async def test() -> None:
        async with bench(concurrency=1) as b:
            reads = [b.queue.submit(1, n, key(n)) for n in range(3)]
            await settled()
            await b.queue.close()
            assert all(read.cancelled() for read in reads)
            b.stats.read_queue_blocks = 0

    run(test)


def test_the_rate_follows_what_was_read_while_busy() -> None:
    meter = RateMeter(100.0)
    meter.update(10, 50_000_000)  # too short to say anything
    assert meter.per_s == 100.0
    for second in range(1, 30):
        meter.update(1000 * second, 1_000_000_000 * second)
    assert meter.per_s == pytest.approx(1000, rel=0.01)
