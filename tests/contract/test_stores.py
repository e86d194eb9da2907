"""Every store passes the conformance suite; and what is particular to each."""

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from dualpath.core.errors import BlockCorrupt, BlockMissing, ConfigError, StoreUnavailable
from dualpath.core.layout import BlockLayout
from dualpath.store import folder, namespace
from dualpath.store.base import Store
from dualpath.store.faulty import FaultyStore
from dualpath.store.memory import MemoryStore
from dualpath.store.open import open_store
from dualpath.store.posix import PosixStore
from dualpath.store.prefix import longest_prefix
from dualpath.store.throttled import ThrottledStore
from dualpath.testing.store import LAYOUT, StoreTests, list_keys, make_block, make_keys, read_block, write_all

OTHER = msgspec.structs.replace(LAYOUT, model="other")


def object_path(root: Path, key: bytes, layout: BlockLayout = LAYOUT) -> Path:
    return root / layout.fingerprint().hex() / key.hex()[:2] / key.hex()


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


class TestMemoryStore(StoreTests):
    def make_store(self, tmp_path: Path) -> Store:
        return MemoryStore(LAYOUT)

    def corrupt(self, store: Store, key: bytes) -> None:
        store.objects[key] = flip(store.objects[key])


def is_cached(file: int) -> bool:
    """Whether the file's first bytes can be had without asking the device."""
    try:
        return os.preadv(file, [bytearray(64)], 0, os.RWF_NOWAIT) == 64
    except BlockingIOError:
        return False
    except OSError as error:
        pytest.skip(f"this file system cannot tell: {error}")


class TestPosixStore(StoreTests):
    persistent = True

    def make_store(self, tmp_path: Path) -> Store:
        return PosixStore(tmp_path / "kv", LAYOUT)

    def corrupt(self, store: Store, key: bytes) -> None:
        path = object_path(store.root, key)
        path.write_bytes(flip(path.read_bytes()))


class TestSyncedPosixStore(TestPosixStore):
    def make_store(self, tmp_path: Path) -> Store:
        return PosixStore(tmp_path / "kv", LAYOUT, workers=2, sync=True)


class TestThrottledStore(TestMemoryStore):
    def make_store(self, tmp_path: Path) -> Store:
        return ThrottledStore(MemoryStore(LAYOUT), LAYOUT, 10**9, 10**9)

    def corrupt(self, store: Store, key: bytes) -> None:
        super().corrupt(store.inner, key)


class TestFaultlessFaultyStore(TestThrottledStore):
    def make_store(self, tmp_path: Path) -> Store:
        return FaultyStore(MemoryStore(LAYOUT), random.Random(1))


async def opened(root: Path, layout: BlockLayout = LAYOUT, **options: object) -> PosixStore:
    store = PosixStore(root, layout, **options)
    await store.open()
    return store


class TestPosixStoreWithoutPageCache(TestPosixStore):
    def make_store(self, tmp_path: Path) -> Store:
        return PosixStore(tmp_path / "kv", LAYOUT, page_cache=False)


class TestPosixFiles:
    @pytest.mark.parametrize("page_cache", [True, False])
    def test_reads_leave_a_copy_in_memory_only_if_wanted(self, tmp_path: Path, page_cache: bool) -> None:
        async def test() -> None:
            store = PosixStore(tmp_path / "kv", LAYOUT, sync=True, page_cache=page_cache)  # only clean pages can go
            await store.open()
            (key,) = make_keys(1)
            block = bytearray(os.urandom(LAYOUT.block_bytes))
            await store.write(key, memoryview(block))
            await store.read(key, memoryview(bytearray(LAYOUT.block_bytes)))
            with object_path(store.root, key).open("rb") as file:
                assert is_cached(file.fileno()) is page_cache

        asyncio.run(test())

    def test_restart_sweeps_old_leftovers_only(self, tmp_path: Path) -> None:
        asyncio.run(opened(tmp_path))
        incoming = tmp_path / LAYOUT.fingerprint().hex() / "incoming"
        old, young = incoming / "dead", incoming / "living"
        for path in (old, young):
            path.write_bytes(b"half")
        os.utime(old, (1, time.time() - 2 * namespace.LEFTOVER_S))
        asyncio.run(opened(tmp_path))
        assert list(incoming.iterdir()) == [young]

    def test_torn_object_is_corrupt_not_listed_as_there_and_replaced(self, tmp_path: Path) -> None:
        async def test() -> None:
            store = await opened(tmp_path)
            (key,) = make_keys(1)
            await write_all(store, [key])
            path = object_path(tmp_path, key)
            whole = path.read_bytes()
            for torn in (b"", whole[:30], whole[:64], whole[:-1], whole + b"x"):
                path.write_bytes(torn)
                with pytest.raises(BlockCorrupt):
                    await read_block(store, key)
                assert not await store.contains(key)
            await write_all(store, [key])
            assert await read_block(store, key) == make_block(key)

        asyncio.run(test())

    def test_short_reads_and_writes_are_continued(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real_read, real_write = os.preadv, os.writev
        steps = iter([10, 54, 1, 100, 5000, 70, 64, 1000] + [10**6] * 4)

        def limited(parts: list[memoryview]) -> list[memoryview]:
            first = next(part for part in parts if len(part))
            return [first[: next(steps)]]

        monkeypatch.setattr(os, "preadv", lambda file, parts, at: real_read(file, limited(parts), at))
        monkeypatch.setattr(os, "writev", lambda file, parts: real_write(file, limited(parts)))

        async def test() -> None:
            store = await opened(tmp_path)
            (key,) = make_keys(1)
            await write_all(store, [key])
            assert await read_block(store, key) == make_block(key)

        asyncio.run(test())

    def test_other_layouts_are_apart_and_named(self, tmp_path: Path) -> None:
        async def test() -> None:
            mine, other = await opened(tmp_path), await opened(tmp_path, OTHER)
            assert await mine.other_layouts() == []
            keys = make_keys(3)
            await write_all(other, keys)
            assert not await mine.contains(keys[0])
            (line,) = await mine.other_layouts()
            assert "3 blocks" in line and "model other" in line
            os.replace(object_path(tmp_path, keys[0], OTHER), object_path(tmp_path, keys[0]))
            with pytest.raises(BlockCorrupt, match="another layout"):
                await read_block(mine, keys[0])

        asyncio.run(test())

    def test_foreign_files_are_passed_over(self, tmp_path: Path) -> None:
        async def test() -> None:
            store = await opened(tmp_path)
            keys = make_keys(2)
            await write_all(store, keys)
            for name in ("README", "00", "f" * 31, "G" * 32):
                (object_path(tmp_path, keys[0]).parent / name).write_text("?")
            assert await list_keys(store) == sorted(keys)

        asyncio.run(test())

    def test_two_stores_share_a_root(self, tmp_path: Path) -> None:
        async def test() -> None:
            stores = [await opened(tmp_path) for _ in range(2)]
            keys = make_keys(30)
            await asyncio.gather(*(write_all(store, keys) for store in stores))
            for key in keys:
                assert await read_block(stores[0], key) == await read_block(stores[1], key) == make_block(key)

        asyncio.run(test())

    def test_killed_writer_leaves_only_whole_blocks(self, tmp_path: Path) -> None:
        script = (
            "import asyncio, pathlib, sys\n"
            "from dualpath.testing.store import LAYOUT, make_keys, write_all\n"
            "from dualpath.store.posix import PosixStore\n"
            "async def main():\n"
            "    store = PosixStore(pathlib.Path(sys.argv[1]), LAYOUT)\n"
            "    await store.open()\n"
            "    keys = make_keys(20000)\n"
            "    print('ready', flush=True)\n"
            "    await asyncio.gather(*(write_all(store, keys[i::8]) for i in range(8)))\n"
            "asyncio.run(main())\n"
        )
        writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(10) == -signal.SIGKILL
        writer.stdout.close()

        async def check() -> int:
            store = await opened(tmp_path)
            keys = await list_keys(store)
            for key in keys:
                assert await read_block(store, key) == make_block(key)
            return len(keys)

        assert asyncio.run(check()) > 0


class TestPosixTrouble:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
    def test_write_error_names_the_mend_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def fail(file: int, parts: list[memoryview]) -> int:
            raise OSError(code, os.strerror(code))

        async def test() -> None:
            store = await opened(tmp_path)
            (key,) = make_keys(1)
            monkeypatch.setattr(os, "writev", fail)
            with pytest.raises(StoreUnavailable, match=r"cannot write .*: .*: .*(free|let|mount|check)"):
                await write_all(store, [key])
            monkeypatch.undo()
            assert not await store.contains(key)
            assert list((tmp_path / LAYOUT.fingerprint().hex() / "incoming").iterdir()) == []
            await write_all(store, [key])

        asyncio.run(test())

    def test_read_error_is_not_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(file: int, parts: list[memoryview], at: int) -> int:
            raise OSError(errno.EIO, "Input/output error")

        async def test() -> None:
            store = await opened(tmp_path)
            (key,) = make_keys(1)
            await write_all(store, [key])
            monkeypatch.setattr(os, "preadv", fail)
            with pytest.raises(StoreUnavailable, match="I/O error"):
                await read_block(store, key)

        asyncio.run(test())

    def test_vanished_root(self, tmp_path: Path) -> None:
        async def test() -> None:
            store = await opened(tmp_path / "kv")
            (key,) = make_keys(1)
            (tmp_path / "kv").rename(tmp_path / "gone")
            with pytest.raises(BlockMissing):
                await read_block(store, key)
            with pytest.raises(StoreUnavailable, match="folder is gone"):
                await write_all(store, [key])

        asyncio.run(test())

    def test_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "kv").write_text("a file")
        for root in (tmp_path / "kv", tmp_path / "kv" / "below"):
            with pytest.raises(ConfigError, match="choose another folder"):
                asyncio.run(opened(root))

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
    def test_unwritable_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        def fail(path: Path, content: bytes) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "write_bytes", fail)
        with pytest.raises(ConfigError, match="choose another folder"):
            asyncio.run(opened(tmp_path))

    def test_newer_or_damaged_root_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "store.json").write_text('{"format_version": 2}')
        with pytest.raises(ConfigError, match="newer"):
            asyncio.run(opened(tmp_path))
        (tmp_path / "store.json").write_text("")
        with pytest.raises(ConfigError, match="damaged"):
            asyncio.run(opened(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["store.json"]

    def test_closed_store_is_unavailable(self, tmp_path: Path) -> None:
        async def test() -> None:
            store = await opened(tmp_path)
            await store.close()
            with pytest.raises(StoreUnavailable, match="closed"):
                await store.contains(make_keys(1)[0])

        asyncio.run(test())


def test_cancelled_read_waits_for_its_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the arena slot could get another owner while the thread still fills it."""
    entered, go = threading.Event(), threading.Event()
    real = os.preadv

    def slow(file: int, parts: list[memoryview], at: int) -> int:
        entered.set()
        assert go.wait(10)
        return real(file, parts, at)

    async def test() -> None:
        store = await opened(tmp_path, workers=1)
        (key,) = make_keys(1)
        await write_all(store, [key])
        monkeypatch.setattr(folder.os, "preadv", slow)
        into = bytearray(LAYOUT.block_bytes)
        read = asyncio.ensure_future(store.read(key, memoryview(into)))
        assert await asyncio.to_thread(entered.wait, 10)
        for _ in range(2):
            read.cancel()
            await asyncio.sleep(0.01)
            assert not read.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await read
        assert into == make_block(key)
        assert await store.contains(key)  # the worker is free again

    asyncio.run(test())


class TestThrottle:
    def test_reads_and_writes_take_their_time_apart(self) -> None:
        async def test() -> None:
            store = ThrottledStore(MemoryStore(LAYOUT), LAYOUT, 8 * LAYOUT.block_bytes * 10, None)
            keys = make_keys(8)
            started_s = time.monotonic()
            await write_all(store, keys)
            written_s = time.monotonic()
            await asyncio.gather(*(read_block(store, key) for key in keys))
            assert written_s - started_s < 0.08
            assert 0.1 <= time.monotonic() - written_s < 0.5
            assert store.read_bytes == store.written_bytes == 8 * LAYOUT.block_bytes

        asyncio.run(test())

    def test_only_completed_payload_counts(self) -> None:
        async def test() -> None:
            store = ThrottledStore(MemoryStore(LAYOUT), LAYOUT, None, 10 * LAYOUT.block_bytes)
            (key,) = make_keys(1)
            with pytest.raises(BlockMissing):
                await read_block(store, key)
            write = asyncio.ensure_future(write_all(store, [key]))
            await asyncio.sleep(0.01)
            assert store.written_bytes == 0
            await write
            await write_all(store, [key])
            assert (store.read_bytes, store.written_bytes) == (0, LAYOUT.block_bytes)

        asyncio.run(test())


class TestFaults:
    def outcomes(self, seed: int) -> list[str]:
        async def test() -> list[str]:
            store = FaultyStore(
                MemoryStore(LAYOUT), random.Random(seed),
                read_error_rate=0.2, corrupt_rate=0.2, missing_rate=0.2, write_error_rate=0.5,
            )  # fmt: skip
            (key,) = make_keys(1)
            seen = []
            for _ in range(100):
                into = bytearray(LAYOUT.block_bytes)
                try:
                    await store.write(key, make_block(key))
                    await store.read(key, memoryview(into))
                    seen.append("read")
                    assert into == make_block(key)
                except (StoreUnavailable, BlockCorrupt, BlockMissing) as error:
                    seen.append(type(error).__name__)
                    assert into != make_block(key)
            return seen

        return asyncio.run(test())

    def test_same_seed_same_faults_of_every_kind(self) -> None:
        assert self.outcomes(1) == self.outcomes(1) != self.outcomes(2)
        assert set(self.outcomes(1)) == {"read", "StoreUnavailable", "BlockCorrupt", "BlockMissing"}

    def test_failed_write_stores_nothing(self) -> None:
        async def test() -> None:
            store = FaultyStore(MemoryStore(LAYOUT), random.Random(1), write_error_rate=1)
            with pytest.raises(StoreUnavailable):
                await write_all(store, make_keys(1))
            assert await list_keys(store) == []

        asyncio.run(test())

    @pytest.mark.parametrize("rates", [{"corrupt_rate": -0.1}, {"corrupt_rate": 0.6, "missing_rate": 0.6}])
    def test_impossible_rates(self, rates: dict[str, float]) -> None:
        with pytest.raises(ValueError):
            FaultyStore(MemoryStore(LAYOUT), random.Random(1), **rates)


class TestOpenStore:
    @pytest.mark.parametrize("text", ["{}", "file://{}", "file://localhost{}", "file:{}"])
    def test_folder(self, tmp_path: Path, text: str) -> None:
        store = open_store(text.format(tmp_path), LAYOUT)
        assert isinstance(store, PosixStore) and store.root == tmp_path

    def test_percent_and_memory(self) -> None:
        store = open_store("file:///a%20b", LAYOUT)
        assert isinstance(store, PosixStore) and store.root == Path("/a b")
        assert isinstance(open_store("memory:", LAYOUT), MemoryStore)

    @pytest.mark.parametrize("text", ["", " ", "ftp://bucket", "redis:x", "file://host/x", "memory://x"])
    def test_refuses_others(self, text: str) -> None:
        with pytest.raises(ConfigError, match="file:///"):
            open_store(text, LAYOUT)


@pytest.mark.parametrize("count", [0, 1, 7, 64, 1000])
def test_prefix_takes_few_probes(count: int) -> None:
    keys = make_keys(count)
    for stored in {0, count // 3, count}:
        probes = []

        async def contains(key: bytes, stored: int = stored, probes: list[bytes] = probes) -> bool:
            probes.append(key)
            return key in keys[:stored]

        assert asyncio.run(longest_prefix(keys, contains)) == stored
        assert len(probes) <= count.bit_length()
