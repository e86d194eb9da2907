"""Round trips and rates to a serving doctor, in every lane, and those of a bare socket in the same run."""

import asyncio
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from dualpath.core.hostprofile import Link, RoundTrip, TransferRate
from dualpath.doctor import raw
from dualpath.doctor.budget import Progress, Stopwatch, as_one_error
from dualpath.doctor.peer import BLOCKS, BLOCKS_BYTES, GRANT, Endpoint
from dualpath.doctor.reads import Pass, typical
from dualpath.transport.base import Lane, LocalRanges, Range, RemoteRanges

CONCURRENCIES = (1, 8)
ROUNDS = 5
SMALL_BYTES = 64
RAW = "raw"
Operation = Literal["fetch", "push"]
OPERATIONS: dict[Operation, bytes] = {"fetch": raw.FETCH, "push": raw.PUSH}


class LinkTest:
    """One peer, one endpoint of ours, and bare connections beside it."""

    def __init__(self, endpoint: Endpoint, peer: str, block_bytes: int, bare: raw.RawClient) -> None:
        self._transport = endpoint.transport
        self._peer = peer
        self._block_bytes = block_bytes
        self._bare = bare

    async def round_trips(self, seconds: float) -> list[RoundTrip]:
        """All lanes and the bare socket, in turns."""
        times: dict[str, list[int]] = {name: [] for name in (RAW, *_lane_names())}
        slice_s = seconds / ROUNDS / len(times)
        for _ in range(ROUNDS):
            times[RAW] += await asyncio.to_thread(self._bare.round_trips_ns, SMALL_BYTES, slice_s)
            for lane in Lane:
                times[lane.name.lower()] += await self._lane_round_trips(lane, slice_s)
        return [_percentiles(name, each) for name, each in times.items()]

    async def rates(self, operation: Operation, concurrency: int, seconds: float) -> list[TransferRate]:
        """All lanes and the bare socket, in turns."""
        passes: dict[str, list[Pass]] = {name: [] for name in (RAW, *_lane_names())}
        slice_s = seconds / ROUNDS / len(passes)
        for _ in range(ROUNDS):
            passes[RAW].append(
                await asyncio.to_thread(
                    self._bare.rate, OPERATIONS[operation], self._block_bytes, concurrency, slice_s
                )
            )  # fmt: skip
            for lane in Lane:
                passes[lane.name.lower()].append(await self._lane_rate(operation, lane, concurrency, slice_s))
        return [TransferRate(name, operation, concurrency, typical(each)) for name, each in passes.items()]

    async def _lane_round_trips(self, lane: Lane, seconds: float) -> list[int]:
        times: list[int] = []
        watch = Stopwatch()
        while not times or watch.seconds < seconds:
            start_ns = time.perf_counter_ns()
            await self._copy("fetch", lane, Range(0, SMALL_BYTES))
            times.append(time.perf_counter_ns() - start_ns)
        return times

    async def _lane_rate(self, operation: Operation, lane: Lane, concurrency: int, seconds: float) -> Pass:
        watch, moved = Stopwatch(), 0

        async def work(slot: int) -> None:
            nonlocal moved
            first = True
            while first or watch.seconds < seconds:
                await self._copy(operation, lane, Range(slot * self._block_bytes, self._block_bytes))
                moved, first = moved + self._block_bytes, False

        async with asyncio.TaskGroup() as tasks:
            for slot in range(concurrency):
                tasks.create_task(work(slot))
        return Pass(moved, watch.seconds)

    async def _copy(self, operation: Operation, lane: Lane, at: Range) -> None:
        remote, local = RemoteRanges(self._peer, BLOCKS, GRANT, [at]), LocalRanges(BLOCKS, [at])
        if operation == "fetch":
            await self._transport.fetch(remote, local, lane=lane)
        else:
            await self._transport.push(local, remote, lane=lane)


class LinkTask(NamedTuple):
    """What to measure, from where, for about how long."""

    kind: str  # of our transport
    host: str  # our own address
    peer: str
    key: bytes | None
    how: str  # "loopback" or "network"
    block_bytes: int
    seconds: float


async def measure_link(task: LinkTask, progress: Progress) -> Link:
    """Measure the way to a serving doctor; TransferError when it does not answer."""
    async with Endpoint(task.kind, task.host, task.key) as endpoint:
        progress(f"network to {task.peer}", 0)
        card = await endpoint.read_card(task.peer)
        slots = [memoryview(bytearray(task.block_bytes)) for _ in range(CONCURRENCIES[-1])]
        bare = await asyncio.to_thread(raw.RawClient, card.raw_host, card.raw_port, card.raw_token, slots)
        try:
            test = LinkTest(endpoint, task.peer, task.block_bytes, bare)
            with as_one_error():
                return await _figures(test, task, carrier(endpoint), progress)
        finally:
            bare.close()


async def _figures(test: LinkTest, task: LinkTask, transport: str, progress: Progress) -> Link:
    share = 1 / (1 + len(OPERATIONS) * len(CONCURRENCIES))
    round_trips, rates = await test.round_trips(share * task.seconds), []
    progress(f"network to {task.peer}", share)
    for operation in OPERATIONS:
        for concurrency in CONCURRENCIES:
            rates += await test.rates(operation, concurrency, share * task.seconds)
            progress(f"network to {task.peer}, {operation}", share)
    best = max(rate.bytes_per_s for rate in rates if rate.lane != RAW)
    return Link(task.peer, transport, task.how, task.block_bytes, best, round_trips, rates)


def carrier(endpoint: Endpoint) -> str:
    """The kind of transport that carried the bytes so far."""
    carried = endpoint.transport.kind_bytes()
    return max(carried, key=lambda kind: carried[kind])


def most_block_bytes() -> int:
    """The largest blocks of which the most that are under way at once fit the peer's memory."""
    return BLOCKS_BYTES // CONCURRENCIES[-1]


def link_ratio(rates: Sequence[TransferRate]) -> float:
    """The transport's best rate over the bare socket's, in the direction in which it compares worse."""
    return min(
        _best(rates, operation, bare=False) / _best(rates, operation, bare=True)
        for operation in {rate.operation for rate in rates}
    )


def _best(rates: Sequence[TransferRate], operation: str, *, bare: bool) -> float:
    return max(rate.bytes_per_s for rate in rates if rate.operation == operation and (rate.lane == RAW) == bare)


def link_name(link: Link) -> str:
    """A link for people."""
    if link.how == "loopback":
        return f"{link.transport} over loopback"
    carrying = (address for address in link.peer.split(",") if address.startswith(f"{link.transport}:"))
    return f"{link.transport} to {next(carrying, link.peer)}"


def _lane_names() -> list[str]:
    return [lane.name.lower() for lane in Lane]


def _percentiles(name: str, times_ns: Sequence[int]) -> RoundTrip:
    p50, p99 = np.percentile(times_ns, [50, 99])
    return RoundTrip(name, int(p50), int(p99))
