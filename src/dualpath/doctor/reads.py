"""Read rates by concurrency: the loops around any way to read a block, and what to make of the figures."""

import asyncio
import itertools
import mmap
import statistics
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dualpath.core.hostprofile import ReadRate, Storage
from dualpath.doctor.budget import Progress, Stopwatch

CONCURRENCIES = (1, 2, 4, 8, 16)
NEAR_BEST = 0.95
ROUNDS = 5  # of every reader, in turns: what disturbs the host disturbs all
PAGE_BYTES = 4096

AsyncRead = Callable[[int, memoryview], Awaitable[None]]
"""Read the block of a number into memory."""
BlockingRead = Callable[[int, memoryview], None]


class Pass(NamedTuple):
    """What was moved, and how long it took."""

    count_bytes: int
    seconds: float


Sweep = Callable[[int, float], Awaitable[Pass]]
"""Read blocks with this concurrency for about so many seconds, no block twice."""


class Contest(NamedTuple):
    """Readers that are compared under one condition; `prepare` restores it before each pass, off the clock."""

    how: str
    sweeps: Mapping[str, Sweep]
    prepare: Callable[[], None]


class Buffers:
    """Page-aligned memory for each of the concurrent reads, with room for a header and the rounding of O_DIRECT."""

    def __init__(self, block_bytes: int) -> None:
        size = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES + 2 * PAGE_BYTES
        whole = memoryview(mmap.mmap(-1, size * CONCURRENCIES[-1]))
        self.views = [whole[start : start + size] for start in range(0, len(whole), size)]
        whole[::PAGE_BYTES] = bytes(len(whole) // PAGE_BYTES)  # all pages are there before the clock runs


def async_sweep(read: AsyncRead, blocks: int, block_bytes: int, buffers: Buffers) -> Sweep:
    """A sweep by tasks of this event loop."""

    async def sweep(concurrency: int, seconds: float) -> Pass:
        numbers, done, watch = iter(range(blocks)), itertools.count(), Stopwatch()

        async def worker(into: memoryview) -> None:
            for number in _until(numbers, watch, seconds):
                await read(number, into)
                next(done)

        async with asyncio.TaskGroup() as tasks:
            for view in buffers.views[:concurrency]:
                tasks.create_task(worker(view))
        return Pass(next(done) * block_bytes, watch.seconds)

    return sweep


def thread_sweep(read: BlockingRead, blocks: int, block_bytes: int, buffers: Buffers) -> Sweep:
    """A sweep by threads, each with a loop of its own and nothing between it and the kernel."""

    def run(concurrency: int, seconds: float) -> Pass:
        numbers, watch = iter(range(blocks)), Stopwatch()

        def worker(into: memoryview) -> int:
            done = 0
            for number in _until(numbers, watch, seconds):
                read(number, into)
                done += 1
            return done

        with ThreadPoolExecutor(concurrency) as pool:
            done = sum(pool.map(worker, buffers.views[:concurrency]))
        return Pass(done * block_bytes, watch.seconds)

    async def sweep(concurrency: int, seconds: float) -> Pass:
        return await asyncio.to_thread(run, concurrency, seconds)

    return sweep


def _until(numbers: Iterator[int], watch: Stopwatch, seconds: float) -> Iterator[int]:
    """The numbers that are left, until time is up; every worker gets at least one if there are enough."""
    for number in numbers:
        yield number
        if watch.seconds > seconds:
            return


async def compare(contests: Sequence[Contest], seconds: float, progress: Progress) -> list[ReadRate]:
    """Rates of every reader in every contest at every concurrency, in about `seconds` plus the preparations."""
    readers = sum(len(contest.sweeps) for contest in contests)
    slice_s = seconds / (readers * len(CONCURRENCIES) * ROUNDS)
    rates = []
    for contest in contests:
        for concurrency in CONCURRENCIES:
            progress(f"reads, {contest.how}, {concurrency} at once", len(contest.sweeps) / len(CONCURRENCIES) / readers)
            passes = await _rounds(contest, concurrency, slice_s)
            rates += [ReadRate(reader, contest.how, concurrency, typical(each)) for reader, each in passes.items()]
    return rates


async def _rounds(contest: Contest, concurrency: int, slice_s: float) -> dict[str, list[Pass]]:
    """All readers in turns; storage so slow that single blocks overrun the time gets fewer rounds."""
    passes: dict[str, list[Pass]] = {reader: [] for reader in contest.sweeps}
    watch = Stopwatch()
    for _ in range(ROUNDS):
        for reader, sweep in contest.sweeps.items():
            contest.prepare()
            passes[reader].append(await sweep(concurrency, slice_s))
        if watch.seconds > ROUNDS * len(contest.sweeps) * slice_s:
            break
    return passes


def typical(passes: Sequence[Pass]) -> float:
    """Bytes a second of the middle pass: what disturbs a few does not count."""
    return statistics.median(each.count_bytes / each.seconds for each in passes)


def best_concurrency(rates: Mapping[int, float]) -> int:
    """The smallest concurrency within 5% of the best rate: more only lengthens queues."""
    best = max(rates.values())
    return min(concurrency for concurrency, rate in rates.items() if rate >= NEAR_BEST * best)


def summary(kind: str, block_bytes: int, reads: list[ReadRate], hows: Sequence[str]) -> Storage:
    """What the rates say of the storage, by the first of these conditions under which its store was measured."""
    how = next(how for how in hows if by_concurrency(reads, "store", how))
    rates = by_concurrency(reads, "store", how)
    concurrency = best_concurrency(rates)
    return Storage(kind, block_bytes, rates[concurrency], how, concurrency, reads)


def by_concurrency(reads: Sequence[ReadRate], reader: str, how: str) -> dict[int, float]:
    """The rates of one reader under one condition."""
    return {read.concurrency: read.bytes_per_s for read in reads if (read.reader, read.how) == (reader, how)}


def ratio(reads: Sequence[ReadRate], how: str) -> float | None:
    """dualpath's best rate over the bare one's under the same condition; None where one was not measured."""
    ours, bare = by_concurrency(reads, "store", how), by_concurrency(reads, "bare", how)
    return max(ours.values()) / max(bare.values()) if ours and bare else None
