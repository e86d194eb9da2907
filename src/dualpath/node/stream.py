"""Layer streams of one prefill engine: cached KV in, new KV out, one layer after the other (paper section 2).

The window has two halves, each one layer's KV of a whole batch: per request its cached blocks and, right behind them,
its new tokens. The agent fills half s % 2 with layer s (from the own arena or the decode node's) while the engine
computes layer s - 1 in the other half and the new KV of layer s - 2 has left. See node/control.py for the counters.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dualpath.core.engine_wire import StreamBatch, StreamItem
from dualpath.core.errors import TransferError
from dualpath.core.layout import BlockLayout
from dualpath.node.arena import ARENA, Arena
from dualpath.node.control import CONTROL_BYTES, Condition, ControlPage, new_bell
from dualpath.node.grants import PrefillGrant
from dualpath.transport.base import Lane, LocalRanges, Range, RemoteRanges, Transport
from dualpath.transport.memory import SharedMemory
from dualpath.transport.nic import NicPair

log = logging.getLogger("dualpath.node")
COMPUTE_DEADLINE_S = 120.0  # for one layer


@dataclass(slots=True)
class Place:
    """One request's run of the window: `start` bytes into a half."""

    grant: PrefillGrant
    start: int
    item: StreamItem


class Rank:
    """The control page and the bells of one process of the engine."""

    def __init__(self) -> None:
        self.memory = SharedMemory.create(CONTROL_BYTES, name="dualpath-control")
        self.agent_bell, self.engine_bell = new_bell(), new_bell()
        self.control = ControlPage(self.memory.view, self.agent_bell, self.engine_bell)

    def close(self) -> None:
        """The engine is gone."""
        self.control.close()
        self.memory.close()


class LayerStream:
    """Window, control pages and stream tasks of one attached engine.

    Each of its ranks reads and writes its own shard of every layer block; one is computed when all have computed it.
    """

    def __init__(
        self,
        name: str,
        layout: BlockLayout,
        window_tokens: int,
        ranks: int,
        arena: Arena,
        transport: Transport,
        nics: NicPair,
    ) -> None:
        self.layout = layout
        self.half_bytes = layout.blocks_for(window_tokens) * layout.layer_block_bytes
        self.region = f"window:{name}"
        self.window = SharedMemory.create(2 * self.half_bytes, name="dualpath-window")
        self.ranks = [Rank() for _ in range(ranks)]
        self._bytes = np.frombuffer(self.window.view, dtype=np.uint8)
        self._pushed = 0  # layers whose new KV has arrived at the decode node
        self._arena = arena
        self._transport = transport
        self._nics = nics
        self._changed = asyncio.Event()
        transport.register(self.region, self.window.view, fd=self.window.fd, authorize=lambda grant, ranges: False)
        for rank in self.ranks:
            asyncio.get_running_loop().add_reader(rank.agent_bell, self._on_bell, rank)

    async def run(self, batch: StreamBatch, grants: Sequence[PrefillGrant]) -> None:
        """Stream a batch through the window; TransferError when that failed (the batch is over then)."""
        try:
            places = self._places(batch, grants)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._fill(tasks, batch.first_layer, places))
                tasks.create_task(self._push(batch.first_layer, places))
        except ExceptionGroup as group:
            self._give_up(batch.first_layer)
            first = group.exceptions[0]
            if not isinstance(first, TransferError):
                log.error("streaming a batch failed unexpectedly", exc_info=group)
            raise TransferError(str(first) or repr(first)) from group
        except TransferError:
            self._give_up(batch.first_layer)
            raise

    def close(self) -> None:
        """The engine is gone."""
        for rank in self.ranks:
            asyncio.get_running_loop().remove_reader(rank.agent_bell)
            rank.close()
        self._transport.unregister(self.region)
        del self._bytes
        self.window.close()

    def _places(self, batch: StreamBatch, grants: Sequence[PrefillGrant]) -> list[Place]:
        """Where each item lies; the engine computes the same from the same batch (node/client.py)."""
        places, start = [], 0
        for item, grant in zip(batch.items, grants, strict=True):
            stop = max(item.fill_start + item.fill_blocks, self.layout.blocks_for(item.push_start + item.push_tokens))
            least = min(item.fill_start, item.fill_blocks, item.push_start, item.push_tokens)
            if least < 0 or stop > len(grant.peer_slots):
                raise TransferError(f"a batch item is outside of its request's {len(grant.peer_slots)} blocks")
            places.append(Place(grant, start, item))
            start += item_bytes(self.layout, item)
        if start > self.half_bytes:
            raise TransferError(f"a batch of {start} bytes a layer does not fit the window of {self.half_bytes}")
        return places

    async def _fill(self, tasks: asyncio.TaskGroup, first: int, places: Sequence[Place]) -> None:
        """A layer is asked for as soon as its half is free, mostly before the last one has come: no gap on the link."""
        before: asyncio.Task[None] | None = None
        for layer in range(self.layout.n_layers):
            s = first + layer
            await self._until(lambda s=s: min(self._computed(), self._pushed) >= s - 1)  # type: ignore[misc]
            before = tasks.create_task(self._fill_layer(s, layer, places, before))

    async def _fill_layer(self, s: int, layer: int, places: Sequence[Place], before: asyncio.Task[None] | None) -> None:
        await asyncio.gather(*(self._fill_place(s % 2, layer, place) for place in places))
        if before:
            await before
        self._set_filled(s + 1)

    async def _fill_place(self, half: int, layer: int, place: Place) -> None:
        size, base = self.layout.layer_block_bytes, half * self.half_bytes + place.start
        remote, into, local = [], [], 0
        for number in range(place.item.fill_blocks):
            block, to = place.item.fill_start + number, base + number * size
            slot = place.grant.local.get(block)
            if slot is None:
                remote.append(self._layer_range(place.grant.peer_slots[block], layer))
                into.append(Range(to, size))
            else:
                source = self._layer_range(slot, layer).offset
                np.copyto(self._bytes[to : to + size], self._arena.bytes[source : source + size])
                local += size
        if local:
            await self._nics.local_copy(local)
        if remote:
            await self._transport.fetch(self._at_peer(place, remote), LocalRanges(self.region, into), lane=Lane.LAYERS)

    async def _push(self, first: int, places: Sequence[Place]) -> None:
        for layer in range(self.layout.n_layers):
            s = first + layer
            await self._until(lambda s=s: self._computed() > s)  # type: ignore[misc]
            await asyncio.gather(*(self._push_place(s % 2, layer, place) for place in places))
            self._pushed = s + 1
            self._changed.set()

    async def _push_place(self, half: int, layer: int, place: Place) -> None:
        item, size = place.item, self.layout.layer_block_bytes
        if not item.push_tokens:
            return
        first = item.push_start // self.layout.block_tokens
        window = half * self.half_bytes + place.start + (item.fill_blocks - first) * size
        source, into = [], []
        for block in range(first, self.layout.blocks_for(item.push_start + item.push_tokens)):
            offset, length = self._part(item, block)
            source.append(Range(window + block * size + offset, length))
            into.append(Range(self._layer_range(place.grant.peer_slots[block], layer).offset + offset, length))
        await self._transport.push(LocalRanges(self.region, source), self._at_peer(place, into), lane=Lane.LAYERS)

    def _part(self, item: StreamItem, block: int) -> tuple[int, int]:
        """Offset and bytes of what is new in a layer block; nobody knows that of an opaque one."""
        if self.layout.memory:
            return 0, self.layout.layer_block_bytes
        first, size = block * self.layout.block_tokens, self.layout.block_tokens
        start = max(item.push_start - first, 0)
        stop = min(item.push_start + item.push_tokens - first, size)
        return start * self.layout.token_bytes, (stop - start) * self.layout.token_bytes

    def _layer_range(self, slot: int, layer: int) -> Range:
        size = self.layout.layer_block_bytes
        return Range(slot * self.layout.block_bytes + layer * size, size)

    def _at_peer(self, place: Place, ranges: list[Range]) -> RemoteRanges:
        return RemoteRanges(place.grant.peer, ARENA, place.grant.grant, ranges)

    async def _until(self, condition: Condition) -> None:
        try:
            async with asyncio.timeout(COMPUTE_DEADLINE_S):
                while not condition():  # no await between look and clear, so that no change is missed
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TransferError(f"no layer was computed or pushed in {COMPUTE_DEADLINE_S:g} s") from None

    def _give_up(self, first: int) -> None:
        """Let the counters stand where the batch would have ended, and say that it did not."""
        for rank in self.ranks:
            rank.control.set_failed(first)
        self._set_filled(first + self.layout.n_layers)
        self._pushed = first + self.layout.n_layers

    def _computed(self) -> int:
        return min(rank.control.computed for rank in self.ranks)

    def _set_filled(self, layers: int) -> None:
        for rank in self.ranks:
            rank.control.set_filled(layers)

    def _on_bell(self, rank: Rank) -> None:
        rank.control.quiet()
        self._changed.set()


def item_bytes(layout: BlockLayout, item: StreamItem) -> int:
    """Bytes of one half of the window that an item of a batch takes."""
    blocks = item.fill_blocks
    if item.push_tokens:
        blocks += layout.blocks_for(item.push_start + item.push_tokens) - item.push_start // layout.block_tokens
    return blocks * layout.layer_block_bytes
