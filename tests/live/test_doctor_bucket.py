"""Doctor on buckets: figures of store and bare gets, and nothing left behind."""

from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from contract import juicefs
from dualpath.core.errors import StoreUnavailable
from dualpath.doctor.budget import Progress
from dualpath.doctor.object_reads import HOW, object_path, object_storage
from dualpath.doctor.scratch import scratch_layout
from dualpath.store.object import ObjectStore
from dualpath.store.objects import BlockObjects
from dualpath.store.open import open_store

BLOCK_BYTES = 64 << 10


def silent(what: str, share: float) -> None:
    """Progress that nobody sees."""


def names(bucket: obstore.store.ObjectStore) -> list[str]:
    return [item["path"] for page in obstore.list(bucket) for item in page]


@pytest.fixture
def local(tmp_path: Path) -> obstore.store.ObjectStore:
    return obstore.store.LocalStore(tmp_path, mkdir=True)


def test_a_bucket_is_measured_and_left_as_it_was(local: obstore.store.ObjectStore) -> None:
    obstore.put(local, "somebody/elses", b"x")
    store = ObjectStore(local, scratch_layout(BLOCK_BYTES), name="s3://b", workers=16)
    found = object_storage(store, 0.5, silent)
    assert {(read.reader, read.how, read.concurrency) for read in found.reads} == {
        (reader, HOW, concurrency) for reader in ("bare", "store") for concurrency in (1, 2, 4, 8, 16)
    }
    assert found.kind == "s3"
    assert min(read.bytes_per_s for read in found.reads) > 0
    assert names(local) == ["somebody/elses"]


def test_the_marker_of_a_used_place_stays(local: obstore.store.ObjectStore) -> None:
    obstore.put(local, "store.json", b'{"format_version":1}')
    object_storage(ObjectStore(local, scratch_layout(BLOCK_BYTES), name="s3://b", workers=16), 0.2, silent)
    assert names(local) == ["store.json"]


def test_a_failure_in_the_middle_leaves_nothing(local: obstore.store.ObjectStore) -> None:
    layout = scratch_layout(BLOCK_BYTES)
    store = ObjectStore(local, layout, name="s3://b", workers=16)
    with pytest.raises(StoreUnavailable):
        object_storage(store, 0.2, failing_at("reads"))
    assert names(local) == []


def failing_at(word: str) -> Progress:
    def progress(what: str, share: float) -> None:
        if what.startswith(word):
            raise StoreUnavailable("gone")

    return progress


def test_objects_are_where_doctor_looks(local: obstore.store.ObjectStore) -> None:
    layout, key = scratch_layout(4096), bytes(range(16))
    assert object_path(layout, key) == BlockObjects(local, "b", layout, deadline_s=1).path(key)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[juicefs.Gateway]:
    with juicefs.gateway(tmp_path_factory.mktemp("s3")) as running:
        yield running


def test_a_real_service(service: juicefs.Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{juicefs.VOLUME}/new/place", scratch_layout(BLOCK_BYTES), workers=16)
    assert isinstance(store, ObjectStore)
    found = object_storage(store, 1, silent)
    assert found.snic_read_bytes_per_s > 0
    assert names(store.bucket) == []
