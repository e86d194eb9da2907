"""Legs of the engines: prompt's KV into a KV cache, new blocks out of it, new KV into the window."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from dualpath.bench.copy_legs import DTYPE_BYTES, KV_HEADS, Leg
from dualpath.core import wire
from dualpath.core.ids import EngineId, RequestId
from dualpath.core.keys import pack_tokens, root_key
from dualpath.core.model import ModelSpec
from dualpath.core.request import Sampling
from dualpath.engine.decode import DecodeEngine
from dualpath.node.arena import Arena

PROMPT_BLOCKS = 32


class DecodeLegs:
    """A real decode engine without agent and model: its copies need neither, so the two are stand-ins."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._layout = arena.layout
        head_dim = self._layout.token_bytes // (2 * KV_HEADS * DTYPE_BYTES)
        spec = ModelSpec("tiny", "", self._layout, KV_HEADS, KV_HEADS, head_dim, 512, 1 << 20, ())
        client = SimpleNamespace(engine=EngineId("d0/0"), send=lambda message: None)
        shared = SimpleNamespace(arena=arena.memory)
        model = SimpleNamespace(spec=spec, device="cpu")
        self._engine = DecodeEngine(cast(Any, client), cast(Any, shared), cast(Any, model), cast(Any, None))
        self._blocks = min(PROMPT_BLOCKS, arena.slots)
        self._running = self._engine._join(self._start(0))
        self._new = np.ones((2, KV_HEADS, self._layout.block_tokens, head_dim), np.float32)

    def legs(self) -> list[Leg]:
        """Into the KV cache, out of it, and the prefill engine's new KV."""
        return [
            Leg("arena -> KV cache", self._join),
            Leg("KV cache -> arena, generated", self._persist),
            Leg("new KV -> window", self._put_new),
        ]

    async def _join(self) -> int:
        """Prompts one after the other; all stay until the end, as in a large batch."""
        running = [self._engine._join(self._start(at)) for at in self._prompts()]
        return len(running) * self._blocks * self._layout.block_bytes

    async def _persist(self) -> int:
        """All blocks of one KV cache, into other slots each time."""
        for at in self._prompts():
            self._running.start = self._start(at)
            self._running.keyed_blocks = 0
            for _ in range(self._blocks):
                self._engine._persist(self._running)
        return len(self._prompts()) * self._blocks * self._layout.block_bytes

    async def _put_new(self) -> int:
        """K and V rows as attention gets them, heads first."""
        window = self._arena.bytes.view(np.float32)
        size = self._layout.layer_block_bytes
        k, v = self._new.transpose(0, 2, 1, 3)
        shape = (self._layout.block_tokens, 2, *k.shape[1:])
        for start in range(0, window.nbytes, size):
            kv = window[start // DTYPE_BYTES : (start + size) // DTYPE_BYTES].reshape(shape)
            kv[:, 0] = k
            kv[:, 1] = v
        return window.nbytes // size * size

    def _prompts(self) -> range:
        return range(0, self._arena.slots - self._blocks + 1, self._blocks)

    def _start(self, first_slot: int) -> wire.StartDecode:
        tokens = pack_tokens([1] * (self._blocks * self._layout.block_tokens))
        slots = list(range(first_slot, first_slot + self._blocks))
        return wire.StartDecode(
            1, EngineId("d0/0"), RequestId("r"), tokens, 1, self._layout.block_tokens, Sampling(), slots,
            root_key(self._layout), "",
        )  # fmt: skip
