"""The conformance suite on buckets: obstore's own, a real S3 service, and the posix store on a FUSE mount."""

import asyncio
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import obstore
import pytest

from contract import juicefs
from dualpath.core.errors import BlockCorrupt, BlockMissing, ConfigError
from dualpath.store import objects
from dualpath.store.base import Store
from dualpath.store.object import ObjectStore
from dualpath.store.open import open_store
from dualpath.store.posix import PosixStore
from dualpath.testing.store import LAYOUT, StoreTests, list_keys, make_block, make_keys, read_block, write_all

OTHER = msgspec.structs.replace(LAYOUT, model="other")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[juicefs.Gateway]:
    with juicefs.gateway(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def s3(service: juicefs.Gateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a place of its own in the service, which the environment names."""
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{juicefs.VOLUME}/{uuid.uuid4().hex}/kv"


def object_path(key: bytes) -> str:
    return f"{LAYOUT.fingerprint().hex()}/{key.hex()[:2]}/{key.hex()}"


def damage(store: ObjectStore, key: bytes) -> None:
    data = bytes(obstore.get(store.bucket, object_path(key)).bytes())
    obstore.put(store.bucket, object_path(key), data[:-1] + bytes([data[-1] ^ 1]))


class BucketTests(StoreTests):
    def corrupt(self, store: Store, key: bytes) -> None:
        assert isinstance(store, ObjectStore)
        damage(store, key)


class TestMemoryBucket(BucketTests):
    def make_store(self, tmp_path: Path) -> Store:
        return ObjectStore(obstore.store.MemoryStore(), LAYOUT, name="a bucket")


class TestLocalBucket(BucketTests):
    persistent = True

    def make_store(self, tmp_path: Path) -> Store:
        return ObjectStore(obstore.store.LocalStore(tmp_path / "kv", mkdir=True), LAYOUT, name="a bucket", workers=2)


class TestPartsOfBucket(TestLocalBucket):
    """Blocks of several parts."""

    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(objects, "PART_BYTES", LAYOUT.block_bytes // 5 + 1)


class TestS3(BucketTests):
    persistent = True

    @pytest.fixture(autouse=True)
    def place(self, s3: str) -> None:
        self.url = s3

    def make_store(self, tmp_path: Path) -> Store:
        return open_store(self.url, LAYOUT)

    def test_two_stores_share_a_place(self) -> None:
        async def test() -> None:
            stores = [open_store(self.url, LAYOUT) for _ in range(2)]
            await asyncio.gather(*(store.open() for store in stores))
            keys = make_keys(10)
            await asyncio.gather(*(write_all(store, keys) for store in stores))
            for key in keys:
                assert await read_block(stores[0], key) == await read_block(stores[1], key) == make_block(key)

        asyncio.run(test())

    def test_other_layouts_are_apart_and_named(self) -> None:
        async def test() -> None:
            mine, other = ObjectStore.from_url(self.url, LAYOUT), ObjectStore.from_url(self.url, OTHER)
            await mine.open()
            await other.open()
            assert await mine.other_layouts() == []
            keys = make_keys(3)
            await write_all(other, keys)
            assert await list_keys(mine) == []
            (line,) = await mine.other_layouts()
            assert "3 blocks" in line and "model other" in line

        asyncio.run(test())

    @pytest.mark.parametrize("part_bytes", [LAYOUT.block_bytes, LAYOUT.block_bytes // 4])
    def test_torn_objects_are_corrupt_not_there_and_replaced(
        self, monkeypatch: pytest.MonkeyPatch, part_bytes: int
    ) -> None:
        monkeypatch.setattr(objects, "PART_BYTES", part_bytes)

        async def test() -> None:
            store = ObjectStore.from_url(self.url, LAYOUT)
            await store.open()
            (key,) = make_keys(1)
            await write_all(store, [key])
            whole = bytes(obstore.get(store.bucket, object_path(key)).bytes())
            for torn in (b"", whole[:10], whole[: len(whole) // 2], whole + b"x"):
                obstore.put(store.bucket, object_path(key), torn)
                assert not await store.contains(key)
                with pytest.raises(BlockCorrupt, match=f"has {len(torn)} bytes"):
                    await read_block(store, key)
                await write_all(store, [key])
                assert await read_block(store, key) == make_block(key)

        asyncio.run(test())

    def test_foreign_objects_are_passed_over(self) -> None:
        async def test() -> None:
            store = ObjectStore.from_url(self.url, LAYOUT)
            await store.open()
            keys = make_keys(2)
            await write_all(store, keys)
            for name in ("README", "00", "f" * 31, "G" * 32):
                obstore.put(store.bucket, f"{LAYOUT.fingerprint().hex()}/ff/{name}", b"?")
            assert await list_keys(store) == sorted(keys)

        asyncio.run(test())

    def test_newer_place_is_left_alone(self) -> None:
        store = ObjectStore.from_url(self.url, LAYOUT)
        obstore.put(store.bucket, "store.json", b'{"format_version": 99}')
        with pytest.raises(ConfigError, match="newer"):
            asyncio.run(store.open())
        assert [item["path"] for item in obstore.list(store.bucket).collect()] == ["store.json"]


class TestPartsOfS3(TestS3):
    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(objects, "PART_BYTES", LAYOUT.block_bytes // 3)


def test_a_block_of_several_full_parts_comes_back(s3: str) -> None:
    layout = msgspec.structs.replace(LAYOUT, n_layers=20, block_tokens=64, token_bytes=16384 + 64)

    async def test() -> None:
        store = open_store(s3, layout, workers=2)
        await store.open()
        (key,) = make_keys(1)
        block = memoryview(re.sub(b"x", b"yz", key) * (layout.block_bytes // 16 + 1))[: layout.block_bytes]
        await store.write(key, block)
        into = bytearray(layout.block_bytes)
        await store.read(key, memoryview(into))
        assert into == block
        await store.delete(key)
        with pytest.raises(BlockMissing):
            await store.read(key, memoryview(into))

    asyncio.run(test())


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with juicefs.mounted(tmp_path_factory.mktemp("fuse")) as folder:
        yield folder


class TestPosixOnFuse(StoreTests):
    persistent = True

    @pytest.fixture(autouse=True)
    def place(self, mount: Path) -> None:
        self.folder = mount

    def make_store(self, tmp_path: Path) -> Store:
        return PosixStore(self.folder / tmp_path.name, LAYOUT, workers=4)

    def corrupt(self, store: Store, key: bytes) -> None:
        assert isinstance(store, PosixStore)
        path = store.root / object_path(key)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
