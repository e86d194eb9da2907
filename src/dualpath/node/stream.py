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

from dualpath.core.errors import TransferError
from dualpath.core.layout import BlockLayout
from dualpath.core.wire import StreamBatch
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
    cached_blocks: int
    new_tokens: int


class LayerStream:
    """Window, control page and stream tasks of one attached engine."""

    def __init__(
        self,
        name: str,
        layout: BlockLayout,
        window_tokens: int,
        arena: Arena,
        transport: Transport,
        nics: NicPair,
    ) -> None:
        self.layout = layout
        self.half_bytes = layout.blocks_for(window_tokens) * layout.layer_block_bytes
        self.region = f"window:{name}"
        self.window = SharedMemory.create(2 * self.half_bytes, name="dualpath-window")
        self.control_memory = SharedMemory.create(CONTROL_BYTES, name="dualpath-control")
        self.agent_bell, self.engine_bell = new_bell(), new_bell()
        self._bytes = np.frombuffer(self.window.view, dtype=np.uint8)
        self._control = ControlPage(self.control_memory.view, self.agent_bell, self.engine_bell)
        self._arena = arena
        self._transport = transport
        self._nics = nics
        self._changed = asyncio.Event()
        transport.register(self.region, self.window.view, fd=self.window.fd, authorize=lambda grant, ranges: False)
        asyncio.get_running_loop().add_reader(self.agent_bell, self._on_bell)

    async def run(self, batch: StreamBatch, grants: Sequence[PrefillGrant]) -> None:
        """Stream a batch through the window; TransferError when that failed (the batch is over then)."""
        try:
            places = self._places(batch, grants)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._fill(batch.first_layer, places))
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
        asyncio.get_running_loop().remove_reader(self.agent_bell)
        self._transport.unregister(self.region)
        del self._bytes
        self._control.close()
        self.window.close()
        self.control_memory.close()

    def _places(self, batch: StreamBatch, grants: Sequence[PrefillGrant]) -> list[Place]:
        """Where each item lies; the engine computes the same from the same batch (node/client.py)."""
        places, start = [], 0
        for item, grant in zip(batch.items, grants, strict=True):
            blocks = item.cached_blocks + self.layout.blocks_for(item.new_tokens)
            if item.cached_blocks < 0 or item.new_tokens < 1 or blocks > len(grant.peer_slots):
                raise TransferError(f"a batch item is outside of its request's {len(grant.peer_slots)} blocks")
            places.append(Place(grant, start, item.cached_blocks, item.new_tokens))
            start += item_bytes(self.layout, item.cached_blocks, item.new_tokens)
        if start > self.half_bytes:
            raise TransferError(f"a batch of {start} bytes a layer does not fit the window of {self.half_bytes}")
        return places

    async def _fill(self, first: int, places: Sequence[Place]) -> None:
        for layer in range(self.layout.n_layers):
            s = first + layer
            await self._until(lambda s=s: min(self._control.computed, self._control.pushed) >= s - 1)  # type: ignore[misc]
            await asyncio.gather(*(self._fill_place(s % 2, layer, place) for place in places))
            self._control.set_filled(s + 1)

    async def _fill_place(self, half: int, layer: int, place: Place) -> None:
        size, base = self.layout.layer_block_bytes, half * self.half_bytes + place.start
        remote, into, local = [], [], 0
        for block in range(place.cached_blocks):
            to = base + block * size
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
            await self._until(lambda s=s: self._control.computed > s)  # type: ignore[misc]
            await asyncio.gather(*(self._push_place(s % 2, layer, place) for place in places))
            self._control.set_pushed(s + 1)
            self._changed.set()

    async def _push_place(self, half: int, layer: int, place: Place) -> None:
        token, per_block = self.layout.token_bytes, self.layout.block_tokens
        new_start = half * self.half_bytes + place.start + place.cached_blocks * self.layout.layer_block_bytes
        source, into = [], []
        for first in range(0, place.new_tokens, per_block):
            length = min(per_block, place.new_tokens - first) * token
            slot = place.grant.peer_slots[place.cached_blocks + first // per_block]
            source.append(Range(new_start + first * token, length))
            into.append(Range(self._layer_range(slot, layer).offset, length))
        await self._transport.push(LocalRanges(self.region, source), self._at_peer(place, into), lane=Lane.LAYERS)

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
        self._control.set_failed(first)
        self._control.set_filled(first + self.layout.n_layers)
        self._control.set_pushed(first + self.layout.n_layers)

    def _on_bell(self) -> None:
        self._control.quiet()
        self._changed.set()


def item_bytes(layout: BlockLayout, cached_blocks: int, new_tokens: int) -> int:
    """Bytes of one half of the window that an item of a batch takes."""
    return (cached_blocks + layout.blocks_for(new_tokens)) * layout.layer_block_bytes
