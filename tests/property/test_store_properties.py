"""Stores against a dict under random operations, and the block format under random damage."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from dualpath.core.errors import BlockCorrupt, BlockMissing
from dualpath.core.layout import BlockLayout
from dualpath.store.base import Store
from dualpath.store.format import HEADER_BYTES, BlockFormat
from dualpath.store.memory import MemoryStore
from dualpath.store.posix import PosixStore
from dualpath.testing.store import LAYOUT, list_keys, make_block, make_keys, read_block

KEYS = make_keys(6)
some_key = st.sampled_from(KEYS)
ROOT = tempfile.TemporaryDirectory()  # one for all examples: making and removing its many folders is slow
TINY = BlockLayout(model="m", n_layers=2, block_tokens=4, token_bytes=8, dtype="float32")


class StoreMachine(RuleBasedStateMachine):
    """A store is a dict of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model: dict[bytes, bytes] = {}
        self.start()
        for key in KEYS:
            self.runner.run(self.store.delete(key))

    def make_store(self) -> Store:
        return MemoryStore(LAYOUT)

    def start(self) -> None:
        self.store = self.make_store()
        self.runner.run(self.store.open())

    def teardown(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()

    @rule(keys=st.lists(some_key, min_size=1, max_size=4))
    def write_together(self, keys: list[bytes]) -> None:
        async def write() -> None:
            await asyncio.gather(*(self.store.write(key, make_block(key)) for key in keys))

        self.runner.run(write())
        self.model.update((key, bytes(make_block(key))) for key in keys)

    @rule(key=some_key)
    def read(self, key: bytes) -> None:
        if key in self.model:
            assert self.runner.run(read_block(self.store, key)) == self.model[key]
        else:
            with pytest.raises(BlockMissing):
                self.runner.run(read_block(self.store, key))

    @rule(key=some_key)
    def delete(self, key: bytes) -> None:
        self.runner.run(self.store.delete(key))
        self.model.pop(key, None)

    @rule(count=st.integers(0, len(KEYS)))
    def ask_prefix(self, count: int) -> None:
        """Exact when prefixes are closed; always the block before the answer is there, the next is not."""
        answer = self.runner.run(self.store.longest_prefix(KEYS[:count]))
        there = [key in self.model for key in KEYS[:count]]
        if there == sorted(there, reverse=True):
            assert answer == sum(there)
        assert answer == 0 or there[answer - 1]
        assert answer == count or not there[answer]

    @rule()
    def list_all(self) -> None:
        assert self.runner.run(list_keys(self.store)) == sorted(self.model)


class PosixMachine(StoreMachine):
    """The same, with restarts."""

    def make_store(self) -> Store:
        return PosixStore(Path(ROOT.name), LAYOUT, workers=2)

    @rule()
    def restart(self) -> None:
        self.runner.run(self.store.close())
        self.start()


TestMemoryMachine = StoreMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestPosixMachine = PosixMachine.TestCase
TestPosixMachine.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)


@settings(max_examples=40, deadline=None)
@given(
    key=st.binary(min_size=16, max_size=16),
    payload=st.binary(min_size=TINY.block_bytes, max_size=TINY.block_bytes),
    mask=st.integers(1, 255),
)
def test_any_flipped_byte_is_detected(key: bytes, payload: bytes, mask: int) -> None:
    block_format = BlockFormat(TINY)
    whole = block_format.header(key, memoryview(payload)) + payload
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= mask
        with pytest.raises(BlockCorrupt):
            block_format.verify(key, damaged[:HEADER_BYTES], memoryview(damaged)[HEADER_BYTES:])


@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=3 * HEADER_BYTES))
def test_noise_is_never_a_block(noise: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        BlockFormat(TINY).verify(bytes(16), noise[:HEADER_BYTES], memoryview(noise)[HEADER_BYTES:])
