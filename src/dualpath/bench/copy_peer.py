"""Legs between two nodes' arenas: this process is one, a process of its own the other.

`python -m dualpath.bench.copy_peer KIND BYTES` is that other one: it prints its address, then answers every line with
its CPU time in ns, until its input ends.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from dualpath.bench.copy_legs import Leg
from dualpath.core.errors import ServiceError
from dualpath.core.layout import BlockLayout
from dualpath.node.arena import ARENA, Arena
from dualpath.transport.base import Lane, LocalRanges, Range, RemoteRanges
from dualpath.transport.memory import SharedMemory
from dualpath.transport.open import open_transport

GRANT = 1
ANSWER_S = 30.0
PULL_BYTES = 4 << 20  # as Loader pulls full blocks
HIT_BLOCKS, NEW_BLOCKS = 32, 8  # of a request in a batch: ranges of one layer's transfer


class Peer:
    """The other process, by its pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        """Its next line; ServiceError when it does not say any."""
        assert self._process.stdout
        try:
            async with asyncio.timeout(ANSWER_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            raise ServiceError("the other process of a transfer is gone or stuck; its last words are above")
        return line.decode().strip()

    async def cpu_ns(self) -> int:
        """CPU time that it has taken so far."""
        assert self._process.stdin
        self._process.stdin.write(b"\n")
        return int(await self.line())


@asynccontextmanager
async def peer_of(kind: str, total_bytes: int) -> AsyncIterator[Peer]:
    """A peer process, which ends with the context, or when this process does."""
    command = [sys.executable, "-m", "dualpath.bench.copy_peer", kind, str(total_bytes)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield Peer(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def transfer_legs(kind: str, arena: Arena) -> AsyncIterator[list[Leg]]:
    """Legs of one kind of transport; ConfigError when this host does not have it."""
    transport = open_transport(kind)
    total_bytes = arena.slots * arena.layout.block_bytes
    transport.register(ARENA, arena.view, fd=arena.memory.fd, authorize=_authorize)
    try:
        await transport.start()
        async with peer_of(kind, total_bytes) as peer:
            address = await peer.line()

            def leg(name: str, lane: Lane, transfers: "Sequence[Transfer]", *, push: bool = False) -> Leg:
                async def move() -> int:
                    for theirs, ours in transfers:
                        remote, own = RemoteRanges(address, ARENA, GRANT, theirs), LocalRanges(ARENA, ours)
                        if push:
                            await transport.push(own, remote, lane=lane)
                        else:
                            await transport.fetch(remote, own, lane=lane)
                    return sum(r.length for theirs, _ in transfers for r in theirs)

                return Leg(f"{kind}: {name}", move, peer.cpu_ns)

            hit = layer_transfers(arena.layout, arena.slots, HIT_BLOCKS)
            new = layer_transfers(arena.layout, arena.slots, NEW_BLOCKS)
            yield [
                leg("full blocks, fetch", Lane.BLOCKS, block_transfers(arena.layout, arena.slots)),
                leg("layer blocks, fetch", Lane.LAYERS, hit),
                leg("new KV of a layer, push", Lane.LAYERS, new, push=True),
            ]
    finally:
        await transport.close()


Transfer = tuple[Sequence[Range], Sequence[Range]]  # the peer's ranges and ours


def block_transfers(layout: BlockLayout, slots: int) -> list[Transfer]:
    """All blocks, as many at once as the loader pulls."""
    at_once = max(1, PULL_BYTES // layout.block_bytes)
    ranges = [Range(slot * layout.block_bytes, layout.block_bytes) for slot in range(slots)]
    return [(part, part) for at in range(0, slots, at_once) if (part := ranges[at : at + at_once])]


def layer_transfers(layout: BlockLayout, slots: int, at_once: int) -> list[Transfer]:
    """All layer blocks: one layer of some blocks a transfer, scattered in the peer's arena, in a row in ours."""
    size, transfers, to = layout.layer_block_bytes, list[Transfer](), 0
    for first in range(0, slots, at_once):
        chosen = range(first, min(first + at_once, slots))
        for layer in range(layout.n_layers):
            theirs = [Range(slot * layout.block_bytes + layer * size, size) for slot in chosen]
            transfers.append((theirs, [Range(to + index * size, size) for index in range(len(chosen))]))
            to += len(chosen) * size
    return transfers


def _authorize(grant: int, ranges: Sequence[Range]) -> bool:
    return grant == GRANT


async def _serve(kind: str, total_bytes: int) -> None:
    with SharedMemory.create(total_bytes, name="dualpath-arena") as memory:
        memory.view[:] = bytes([1]) * total_bytes
        transport = open_transport(kind)
        transport.register(ARENA, memory.view, fd=memory.fd, authorize=_authorize)
        try:
            await transport.start()
            print(transport.address, flush=True)
            while await asyncio.to_thread(sys.stdin.readline):
                print(time.process_time_ns(), flush=True)
        finally:
            await transport.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
