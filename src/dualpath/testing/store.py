"""What every store must do, as tests: subclass `StoreTests` in a test module and say how to make yours."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dualpath.core.errors import BlockCorrupt, BlockMissing
from dualpath.core.keys import BlockKey, chain_keys, pack_tokens, root_key
from dualpath.core.layout import BlockLayout
from dualpath.store.base import Store

LAYOUT = BlockLayout(model="suite", n_layers=3, block_tokens=8, token_bytes=512, dtype="float32")


def make_keys(count: int) -> list[BlockKey]:
    """A chain of keys of LAYOUT."""
    tokens = pack_tokens(range(count * LAYOUT.block_tokens))
    return chain_keys(root_key(LAYOUT), tokens, LAYOUT.block_tokens)


def make_block(key: BlockKey) -> memoryview:
    """The bytes that these tests store under `key`: equal for equal keys, else different."""
    return memoryview((key * (LAYOUT.block_bytes // len(key) + 1))[: LAYOUT.block_bytes])


async def write_all(store: Store, keys: list[BlockKey]) -> None:
    """Store the block of every key, in order."""
    for key in keys:
        await store.write(key, make_block(key))


async def read_block(store: Store, key: BlockKey) -> bytes:
    """Read into fresh memory."""
    into = bytearray(LAYOUT.block_bytes)
    await store.read(key, memoryview(into))
    return bytes(into)


async def list_keys(store: Store) -> list[BlockKey]:
    """All keys of the store, sorted."""
    return sorted([key async for key in store.keys()])  # noqa: SIM118 (a store is no dict)


class StoreTests:
    """The contract of dualpath.store.base.Store. Every test makes its own store in its own event loop."""

    persistent = False  # whether a second store of make_store(tmp_path) finds what the first one wrote

    def make_store(self, tmp_path: Path) -> Store:
        """A new store for blocks of LAYOUT, not yet open; called again with the same path it is a restart."""
        raise NotImplementedError

    def corrupt(self, store: Store, key: BlockKey) -> None:
        """Damage the stored object of `key` behind the store's back."""
        pytest.skip("this store gives no way to damage a block")

    def run(self, tmp_path: Path, test: Callable[[Store], Awaitable[None]]) -> None:
        """Open a store, do `test` within a deadline, close it."""

        async def session() -> None:
            store = self.make_store(tmp_path)
            await store.open()
            try:
                await asyncio.wait_for(test(store), timeout=60)
            finally:
                await store.close()

        asyncio.run(session())

    def test_reads_back_what_was_written(self, tmp_path: Path) -> None:
        """Every byte of every block."""

        async def test(store: Store) -> None:
            keys = make_keys(5)
            await write_all(store, keys)
            for key in reversed(keys):
                assert await store.contains(key)
                assert await read_block(store, key) == make_block(key)

        self.run(tmp_path, test)

    def test_absent_block_is_missing(self, tmp_path: Path) -> None:
        """BlockMissing, also with other blocks around it."""

        async def test(store: Store) -> None:
            written, absent = make_keys(2)
            await write_all(store, [written])
            assert not await store.contains(absent)
            with pytest.raises(BlockMissing):
                await read_block(store, absent)

        self.run(tmp_path, test)

    def test_second_write_succeeds_and_changes_nothing(self, tmp_path: Path) -> None:
        """Writes are idempotent."""

        async def test(store: Store) -> None:
            (key,) = make_keys(1)
            await write_all(store, [key, key])
            assert await read_block(store, key) == make_block(key)
            assert await list_keys(store) == [key]

        self.run(tmp_path, test)

    def test_concurrent_writes_of_one_key(self, tmp_path: Path) -> None:
        """All succeed; one whole block is there."""

        async def test(store: Store) -> None:
            (key,) = make_keys(1)
            await asyncio.gather(*(store.write(key, make_block(key)) for _ in range(16)))
            assert await read_block(store, key) == make_block(key)
            assert await list_keys(store) == [key]

        self.run(tmp_path, test)

    def test_concurrent_reads(self, tmp_path: Path) -> None:
        """Many readers of several blocks, more than any pool has workers, each get their own block."""

        async def test(store: Store) -> None:
            keys = make_keys(4)
            await write_all(store, keys)
            blocks = await asyncio.gather(*(read_block(store, key) for key in keys * 16))
            assert blocks == [make_block(key) for key in keys * 16]

        self.run(tmp_path, test)

    def test_reader_sees_all_or_nothing(self, tmp_path: Path) -> None:
        """While a block comes and goes, a read gives the whole block or BlockMissing."""

        async def test(store: Store) -> None:
            (key,) = make_keys(1)

            async def come_and_go() -> None:
                for _ in range(50):
                    await write_all(store, [key])
                    await asyncio.sleep(0)
                    await store.delete(key)

            async def look() -> None:
                while not writer.done():
                    await asyncio.sleep(0)
                    try:
                        assert await read_block(store, key) == make_block(key)
                    except BlockMissing:
                        continue

            writer = asyncio.ensure_future(come_and_go())
            await asyncio.gather(writer, look(), look(), look())

        self.run(tmp_path, test)

    def test_memory_is_free_after_write(self, tmp_path: Path) -> None:
        """The caller's buffer may be used again as soon as write() returned."""

        async def test(store: Store) -> None:
            buffer = bytearray(LAYOUT.block_bytes)
            keys = make_keys(3)
            for key in keys:
                buffer[:] = make_block(key)
                await store.write(key, memoryview(buffer))
            buffer[:] = bytes(len(buffer))
            for key in keys:
                assert await read_block(store, key) == make_block(key)

        self.run(tmp_path, test)

    @pytest.mark.parametrize("excess", [-LAYOUT.block_bytes, -1, 1])
    def test_wrong_length_is_refused(self, tmp_path: Path, excess: int) -> None:
        """ValueError for a buffer that is not one block, and nothing is stored."""

        async def test(store: Store) -> None:
            stored, new = make_keys(2)
            await write_all(store, [stored])
            wrong = memoryview(bytearray(LAYOUT.block_bytes + excess))
            with pytest.raises(ValueError):
                await store.read(stored, wrong)
            with pytest.raises(ValueError):
                await store.write(new, wrong)
            assert not await store.contains(new)

        self.run(tmp_path, test)

    def test_wrong_key_and_read_only_memory_are_refused(self, tmp_path: Path) -> None:
        """ValueError too."""

        async def test(store: Store) -> None:
            (key,) = make_keys(1)
            await write_all(store, [key])
            with pytest.raises(ValueError):
                await store.write(key[:-1], make_block(key))
            with pytest.raises(ValueError):
                await store.read(key, make_block(key))

        self.run(tmp_path, test)

    def test_damage_is_detected_and_mended(self, tmp_path: Path) -> None:
        """BlockCorrupt, neighbours are unharmed, and after a delete the block can be written anew."""

        async def test(store: Store) -> None:
            damaged, whole = make_keys(2)
            await write_all(store, [damaged, whole])
            self.corrupt(store, damaged)
            with pytest.raises(BlockCorrupt):
                await read_block(store, damaged)
            assert await read_block(store, whole) == make_block(whole)
            await store.delete(damaged)
            await write_all(store, [damaged])
            assert await read_block(store, damaged) == make_block(damaged)

        self.run(tmp_path, test)

    @pytest.mark.parametrize("stored", [0, 1, 2, 5, 8, 9])
    def test_longest_prefix(self, tmp_path: Path, stored: int) -> None:
        """For every length of the stored part, and for no keys at all."""

        async def test(store: Store) -> None:
            keys = make_keys(9)
            await write_all(store, keys[:stored])
            assert await store.longest_prefix(keys) == stored
            assert await store.longest_prefix(keys[:3]) == min(stored, 3)
            assert await store.longest_prefix([]) == 0

        self.run(tmp_path, test)

    def test_keys_lists_everything_once(self, tmp_path: Path) -> None:
        """What is stored, without what was deleted."""

        async def test(store: Store) -> None:
            assert await list_keys(store) == []
            keys = make_keys(20)
            await write_all(store, keys)
            await store.delete(keys[-1])
            assert await list_keys(store) == sorted(keys[:-1])

        self.run(tmp_path, test)

    def test_delete_forgets(self, tmp_path: Path) -> None:
        """Also twice, and for a key that never was."""

        async def test(store: Store) -> None:
            written, never = make_keys(2)
            await write_all(store, [written])
            for key in (written, written, never):
                await store.delete(key)
            assert not await store.contains(written)
            with pytest.raises(BlockMissing):
                await read_block(store, written)

        self.run(tmp_path, test)

    def test_restart_finds_everything(self, tmp_path: Path) -> None:
        """A new store at the same place has all blocks."""
        if not self.persistent:
            pytest.skip("this store does not outlive its process")
        keys = make_keys(6)

        async def check(store: Store) -> None:
            assert await list_keys(store) == sorted(keys)
            assert await store.longest_prefix(keys) == len(keys)
            for key in keys:
                assert await read_block(store, key) == make_block(key)

        self.run(tmp_path, lambda store: write_all(store, keys))
        self.run(tmp_path, check)
