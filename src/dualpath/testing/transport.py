"""What every transport must do, as tests: subclass `TransportTests` and say how to make an endpoint."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dualpath.core.errors import GrantExpired, TransferError
from dualpath.transport.base import Lane, LocalRanges, Range, RemoteRanges, Transport
from dualpath.transport.memory import SharedMemory
from dualpath.transport.nic import NicPair

MIB = 1 << 20
GRANT = 7


class Node:
    """An endpoint with one region "arena" of random bytes, and the grants that its owner honours."""

    def __init__(self, transport: Transport, size_bytes: int, seed: int) -> None:
        self.transport = transport
        self.memory = SharedMemory.create(size_bytes)
        self.memory.view[:] = random.Random(seed).randbytes(size_bytes)
        self.grants = {GRANT}
        transport.register("arena", self.memory.view, fd=self.memory.fd, authorize=self.authorize)

    def authorize(self, grant: int, ranges: Sequence[Range]) -> bool:
        """Whether the grant stands; ranges are not looked at."""
        return grant in self.grants

    def remote(self, *ranges: Range, grant: int = GRANT, region: str = "arena") -> RemoteRanges:
        """Ranges of this node, for peers."""
        return RemoteRanges(self.transport.address, region, grant, ranges)

    def bytes_of(self, *ranges: Range) -> bytes:
        """What these ranges hold."""
        return b"".join(bytes(self.memory.view[r.offset : r.offset + r.length]) for r in ranges)

    async def close(self) -> None:
        """Close the endpoint, then the memory."""
        await self.transport.close()
        self.memory.close()


def local(*ranges: Range, region: str = "arena") -> LocalRanges:
    """Ranges of the caller."""
    return LocalRanges(region, ranges)


class TransportTests:
    """The contract of dualpath.transport.base.Transport, between two endpoints in one event loop."""

    seed = 20260223  # of memories and random ranges; printed with the failure of a test that depends on it

    def make_transport(
        self, folder: Path, *, nics: NicPair | None = None, deadline_s: float = 20, address: str = ""
    ) -> Transport:
        """A new endpoint in a folder of its own, or at the `address` that an earlier one had there."""
        raise NotImplementedError

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        """Do one test within a deadline."""

        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test()

        asyncio.run(bounded())

    @asynccontextmanager
    async def nodes(
        self,
        tmp_path: Path,
        *,
        size_bytes: int = MIB,
        rates: tuple[int | None, int | None] = (None, None),
        deadline_s: float = 20,
    ) -> AsyncIterator[tuple[Node, Node]]:
        """A caller and a server with NICs of the given rates, started."""
        both = [
            Node(
                self.make_transport(tmp_path / str(index), nics=NicPair(rate), deadline_s=deadline_s),
                size_bytes,
                seed=self.seed + index,
            )
            for index, rate in enumerate(rates)
        ]
        for node in both:
            await node.transport.start()
        try:
            yield both[0], both[1]
        finally:
            for node in both:
                await node.close()

    def test_fetch_and_push_move_exactly_the_ranges(self, tmp_path: Path) -> None:
        """And no byte beside them."""

        async def test() -> None:
            async with self.nodes(tmp_path) as (caller, server):
                theirs = (Range(100, 5000), Range(5100, 1), Range(900_000, 30_000))
                ours = (Range(0, 5000), Range(700_000, 1), Range(5000, 30_000))
                before = bytearray(caller.memory.view)
                await caller.transport.fetch(server.remote(*theirs), local(*ours), lane=Lane.LAYERS)
                assert caller.bytes_of(*ours) == server.bytes_of(*theirs)
                for ours_range, theirs_range in zip(ours, theirs, strict=True):
                    end = ours_range.offset + ours_range.length
                    before[ours_range.offset : end] = server.bytes_of(theirs_range)
                assert bytes(caller.memory.view) == before, "bytes outside of the ranges changed"
                back = tuple(Range(r.offset + 40_000, r.length) for r in theirs)
                await caller.transport.push(local(*ours), server.remote(*back), lane=Lane.BLOCKS)
                assert server.bytes_of(*back) == caller.bytes_of(*ours)

        self.run(test)

    def test_integrity_of_random_ranges(self, tmp_path: Path) -> None:
        """Tens of MiB in ranges of mixed sizes and random order, in both directions."""

        async def test() -> None:
            print(f"seed {self.seed}")
            rng = random.Random(self.seed)
            async with self.nodes(tmp_path, size_bytes=12 * MIB) as (caller, server):
                for lane in (Lane.LAYERS, Lane.BLOCKS):
                    lengths = [rng.choice([1, 777, 8192, 65_536, 600_000]) for _ in range(60)]
                    theirs, ours = _scattered(rng, lengths), _scattered(rng, lengths)
                    await caller.transport.fetch(server.remote(*theirs), local(*ours), lane=lane)
                    assert caller.bytes_of(*ours) == server.bytes_of(*theirs)
                    theirs, ours = _scattered(rng, lengths), _scattered(rng, lengths)
                    await caller.transport.push(local(*ours), server.remote(*theirs), lane=lane)
                    assert caller.bytes_of(*ours) == server.bytes_of(*theirs)

        self.run(test)

    def test_thousands_of_small_ranges(self, tmp_path: Path) -> None:
        """More ranges than one system call takes, in opposite orders."""

        async def test() -> None:
            async with self.nodes(tmp_path) as (caller, server):
                theirs = [Range(64 * index, 32) for index in range(8000)]
                ours = [Range(32 * index, 32) for index in reversed(range(8000))]
                await caller.transport.fetch(server.remote(*theirs), local(*ours), lane=Lane.LAYERS)
                assert caller.bytes_of(*ours) == server.bytes_of(*theirs)

        self.run(test)

    def test_wrong_own_ranges_are_value_errors(self, tmp_path: Path) -> None:
        """Unequal lengths, no ranges, empty ones, ones outside of the own region."""

        async def test() -> None:
            async with self.nodes(tmp_path) as (caller, server):
                wrong = [
                    ((Range(0, 10),), (Range(0, 11),)),
                    ((Range(0, 10),), (Range(0, 5), Range(5, 5))),
                    ((), ()),
                    ((Range(0, 0),), (Range(0, 0),)),
                    ((Range(0, 10),), (Range(MIB - 9, 10),)),
                    ((Range(0, 10),), (Range(-1, 10),)),
                ]
                for theirs, ours in wrong:
                    with pytest.raises(ValueError):
                        await caller.transport.fetch(server.remote(*theirs), local(*ours), lane=Lane.LAYERS)
                    with pytest.raises(ValueError):
                        await caller.transport.push(local(*ours), server.remote(*theirs), lane=Lane.LAYERS)

        self.run(test)

    def test_refusals_touch_nothing_and_the_next_transfer_works(self, tmp_path: Path) -> None:
        """Refused grant, unknown region, ranges outside of the peer's region."""

        async def test() -> None:
            async with self.nodes(tmp_path) as (caller, server):
                piece = Range(0, 500_000)
                refused = [
                    (server.remote(piece, grant=8), GrantExpired),
                    (server.remote(piece, region="window"), TransferError),
                    (server.remote(Range(MIB - 10, 500_000)), TransferError),
                    (server.remote(Range(2 * MIB, 500_000)), TransferError),
                ]
                before = bytes(caller.memory.view), bytes(server.memory.view)
                for remote, error in refused:
                    with pytest.raises(error):
                        await caller.transport.fetch(remote, local(piece), lane=Lane.LAYERS)
                    with pytest.raises(error):
                        await caller.transport.push(local(piece), remote, lane=Lane.LAYERS)
                assert before == (bytes(caller.memory.view), bytes(server.memory.view))
                await caller.transport.fetch(server.remote(piece), local(piece), lane=Lane.LAYERS)
                assert caller.bytes_of(piece) == server.bytes_of(piece)
                with pytest.raises(TransferError):
                    await caller.transport.fetch(server.remote(piece), local(piece, region="window"), lane=Lane.LAYERS)

        self.run(test)

    def test_unregistered_region_is_refused_and_can_be_replaced(self, tmp_path: Path) -> None:
        """A peer never sees the memory that the name had before."""

        async def test() -> None:
            piece = Range(0, 1000)
            async with self.nodes(tmp_path) as (caller, server):
                await caller.transport.fetch(server.remote(piece), local(piece), lane=Lane.LAYERS)
                server.transport.unregister("arena")
                with pytest.raises(TransferError):
                    await caller.transport.fetch(server.remote(piece), local(piece), lane=Lane.LAYERS)
                with SharedMemory.create(4096) as other:
                    other.view[:] = b"\x5a" * 4096
                    server.transport.register("arena", other.view, fd=other.fd, authorize=server.authorize)
                    await caller.transport.fetch(server.remote(piece), local(piece), lane=Lane.LAYERS)
                    assert caller.bytes_of(piece) == b"\x5a" * 1000
                    server.transport.unregister("arena")

        self.run(test)

    def test_many_transfers_at_once_in_both_directions_and_lanes(self, tmp_path: Path) -> None:
        """More than there are connections."""

        async def test() -> None:
            async with self.nodes(tmp_path, size_bytes=8 * MIB) as (one, other):
                jobs, checks, size = [], [], 64 * 1024
                for index in range(32):
                    lane = Lane(index % 2)
                    low, high = Range(2 * index * size, size), Range((2 * index + 1) * size, size)
                    a, b = (one, other) if index % 3 else (other, one)
                    jobs.append(a.transport.fetch(b.remote(low), local(high), lane=lane))
                    checks.append((a, high, b.bytes_of(low)))
                    low, high = Range(low.offset + 4 * MIB, size), Range(high.offset + 4 * MIB, size)
                    jobs.append(a.transport.push(local(low), b.remote(high), lane=lane))
                    checks.append((b, high, a.bytes_of(low)))
                await asyncio.gather(*jobs)
                assert all(node.bytes_of(where) == expected for node, where, expected in checks)

        self.run(test)

    def test_first_transfers_may_overlap(self, tmp_path: Path) -> None:
        """What is set up on first use of a peer is not disturbed by transfers that overlap there."""

        async def test() -> None:
            rates = (None, 32 * MIB)
            async with self.nodes(tmp_path, size_bytes=8 * MIB, rates=rates) as (caller, server):
                parts = [Range(index * MIB, MIB) for index in range(8)]
                first = [
                    caller.transport.fetch(server.remote(part), local(part), lane=Lane(index % 2))
                    for index, part in enumerate(parts)
                ]
                await asyncio.gather(*first)
                assert bytes(caller.memory.view) == bytes(server.memory.view)

        self.run(test)

    def test_throttled_transfers_take_their_time(self, tmp_path: Path) -> None:
        """Lower bounds; and an upper one loose enough for any machine, below the sum of both ends' times."""

        async def test() -> None:
            rate, count = 8 * MIB, 2 * MIB
            for rates in [(rate, None), (None, rate), (rate, rate)]:
                times_s = []
                async with self.nodes(tmp_path, size_bytes=count, rates=rates) as (caller, server):
                    for operation in ("fetch", "push"):
                        began = time.monotonic()
                        await _whole_arena(operation, caller, server, count)
                        times_s.append(time.monotonic() - began)
                assert 0.95 * 0.25 <= min(times_s) < 0.45, f"at rates {rates}: {times_s}"

        self.run(test)

    def test_layers_overtake_blocks_without_starving_them(self, tmp_path: Path) -> None:
        """A later LAYERS transfer ends before an earlier BLOCKS one of the same size."""

        async def test() -> None:
            size = 2 * MIB
            rates = (8 * MIB, 8 * MIB)
            async with self.nodes(tmp_path, size_bytes=4 * MIB, rates=rates) as (caller, server):
                order: list[str] = []

                async def move(name: str, offset: int, lane: Lane) -> None:
                    piece = Range(offset, size)
                    await caller.transport.fetch(server.remote(piece), local(piece), lane=lane)
                    order.append(name)

                blocks = asyncio.create_task(move("blocks", 0, Lane.BLOCKS))
                await asyncio.sleep(0.05)
                await move("layers", size, Lane.LAYERS)
                await blocks
                assert order == ["layers", "blocks"]

        self.run(test)

    def test_counters(self, tmp_path: Path) -> None:
        """Both ends count, by lane and direction."""

        async def test() -> None:
            async with self.nodes(tmp_path) as (caller, server):
                await caller.transport.fetch(server.remote(Range(0, 300)), local(Range(0, 300)), lane=Lane.LAYERS)
                await caller.transport.push(local(Range(0, 500)), server.remote(Range(0, 500)), lane=Lane.BLOCKS)
                await asyncio.sleep(0.05)
                ours = {"layers_in": 300, "layers_out": 0, "blocks_in": 0, "blocks_out": 500}
                theirs = {"layers_in": 0, "layers_out": 300, "blocks_in": 500, "blocks_out": 0}
                assert (caller.transport.lane_bytes(), server.transport.lane_bytes()) == (ours, theirs)

        self.run(test)

    @pytest.mark.parametrize("who", ["caller", "server"])
    @pytest.mark.parametrize("operation", ["fetch", "push"])
    def test_close_in_the_middle_fails_at_once(self, tmp_path: Path, who: str, operation: str) -> None:
        """Whichever end closes; and the server's region is free at once."""

        async def test() -> None:
            rates = (MIB, MIB)
            async with self.nodes(tmp_path, size_bytes=16 * MIB, rates=rates) as (caller, server):
                task = asyncio.create_task(_whole_arena(operation, caller, server, 16 * MIB))
                await asyncio.sleep(0.3)
                await (caller if who == "caller" else server).transport.close()
                began = time.monotonic()
                with pytest.raises(TransferError):
                    await task
                assert time.monotonic() - began < 5
                await server.transport.drained("arena", GRANT)

        self.run(test)

    def test_deadline(self, tmp_path: Path) -> None:
        """A transfer that the NIC cannot carry in time fails."""

        async def test() -> None:
            rates = (MIB, MIB)
            async with self.nodes(tmp_path, size_bytes=16 * MIB, rates=rates, deadline_s=0.3) as (a, b):
                for operation in ("fetch", "push"):
                    with pytest.raises(TransferError):
                        await _whole_arena(operation, a, b, 16 * MIB)

        self.run(test)

    def test_cancelled_transfer_leaves_the_lane_usable(self, tmp_path: Path) -> None:
        """Cancellation in the middle costs only that transfer."""

        async def test() -> None:
            rates = (4 * MIB, 4 * MIB)
            async with self.nodes(tmp_path, size_bytes=8 * MIB, rates=rates) as (caller, server):
                for operation in ("fetch", "push"):
                    task = asyncio.create_task(_whole_arena(operation, caller, server, 8 * MIB))
                    await asyncio.sleep(0.2)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    assert task.cancelled()
                    await _whole_arena(operation, caller, server, 1000)

        self.run(test)

    def test_nobody_there(self, tmp_path: Path) -> None:
        """A peer that has gone is a TransferError."""

        async def test() -> None:
            async with self.nodes(tmp_path) as (caller, server):
                await server.transport.close()
                for operation in ("fetch", "push"):
                    with pytest.raises(TransferError):
                        await _whole_arena(operation, caller, server, 1000)

        self.run(test)

    def test_peer_restarts_at_its_address(self, tmp_path: Path) -> None:
        """Connections and mappings of its earlier life are not used again."""

        async def test() -> None:
            async with self.nodes(tmp_path) as (caller, server):
                address, folder = server.transport.address, tmp_path / "1"
                await _whole_arena("fetch", caller, server, MIB)
                await server.transport.close()
                again = Node(self.make_transport(folder, address=address), MIB, seed=self.seed + 2)
                await again.transport.start()
                assert again.transport.address == address
                await _whole_arena("fetch", caller, again, MIB)
                assert bytes(caller.memory.view) == bytes(again.memory.view)
                await again.close()

        self.run(test)

    @pytest.mark.parametrize("operation", ["fetch", "push"])
    def test_drained_waits_for_transfers_under_way(self, tmp_path: Path, operation: str) -> None:
        """The owner refuses a grant, waits, and from then on the memory is its own; a push is not acknowledged."""

        async def test() -> None:
            rates = (4 * MIB, 4 * MIB)
            async with self.nodes(tmp_path, size_bytes=2 * MIB, rates=rates) as (caller, server):
                await server.transport.drained("arena", GRANT)
                task = asyncio.create_task(_whole_arena(operation, caller, server, 2 * MIB))
                await asyncio.sleep(0.2)
                server.grants.clear()
                began = time.monotonic()
                await server.transport.drained("arena", GRANT)
                assert time.monotonic() - began > 0.1
                before = bytes(server.memory.view)
                result = (await asyncio.gather(task, return_exceptions=True))[0]
                assert isinstance(result, GrantExpired if operation == "push" else type(None))
                assert bytes(server.memory.view) == before

        self.run(test)


async def _whole_arena(operation: str, caller: Node, server: Node, size_bytes: int) -> None:
    """Move the first bytes of both arenas in the lane of blocks."""
    piece = Range(0, size_bytes)
    if operation == "fetch":
        await caller.transport.fetch(server.remote(piece), local(piece), lane=Lane.BLOCKS)
    else:
        await caller.transport.push(local(piece), server.remote(piece), lane=Lane.BLOCKS)


def _scattered(rng: random.Random, lengths: Sequence[int]) -> list[Range]:
    """Ranges of these lengths that do not overlap: laid out in random order, with random gaps."""
    ranges: dict[int, Range] = {}
    offset = 0
    for index in rng.sample(range(len(lengths)), len(lengths)):
        offset += rng.choice([0, 0, 1, 100])
        ranges[index] = Range(offset, lengths[index])
        offset += lengths[index]
    return [ranges[index] for index in range(len(lengths))]
