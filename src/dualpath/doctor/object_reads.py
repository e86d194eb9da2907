"""Read rates of a bucket: dualpath's store against bare gets of the same objects, by the same client."""

from collections.abc import Iterator
from contextlib import contextmanager

import obstore

from dualpath.core.hostprofile import ReadRate, Storage
from dualpath.core.layout import BlockLayout
from dualpath.doctor.budget import Progress, as_one_error
from dualpath.doctor.interrupt import run
from dualpath.doctor.reads import Buffers, Contest, async_sweep, compare, summary, thread_sweep
from dualpath.doctor.scratch import WRITE_SHARE, write_blocks
from dualpath.store.format import HEADER_BYTES
from dualpath.store.marker import ROOT_MARKER, is_namespace
from dualpath.store.object import ObjectStore
from dualpath.store.objecterrors import unavailable, unusable

HOW = "object store"  # what the service caches is its own


def object_storage(store: ObjectStore, seconds: float, progress: Progress) -> Storage:
    """Measure a store of a scratch layout, with a worker for each read; leaves nothing in its bucket.

    ConfigError or StoreError when the bucket is no usable store.
    """
    with scratch_prefix(store, store.layout):
        reads = run(_measure(store, seconds, progress))
    return summary(store.name.partition(":")[0], store.layout.block_bytes, reads, (HOW,))


async def _measure(store: ObjectStore, seconds: float, progress: Progress) -> list[ReadRate]:
    block_bytes = store.layout.block_bytes
    try:
        await store.open()
        keys = await write_blocks(store, store.layout, WRITE_SHARE * seconds, progress)
        buffers = Buffers(block_bytes)

        def get(number: int, into: memoryview) -> None:
            content = obstore.get(store.bucket, object_path(store.layout, keys[number])).bytes()
            assert len(content) == HEADER_BYTES + block_bytes

        async def read(number: int, into: memoryview) -> None:
            await store.read(keys[number], into[:block_bytes])

        sweeps = {
            "bare": thread_sweep(get, len(keys), block_bytes, buffers),
            "store": async_sweep(read, len(keys), block_bytes, buffers),
        }
        with as_one_error(), unavailable("read blocks in", store.name):
            return await compare([Contest(HOW, sweeps, lambda: None)], (1 - WRITE_SHARE) * seconds, progress)
    finally:
        await store.close()


@contextmanager
def scratch_prefix(store: ObjectStore, layout: BlockLayout) -> Iterator[None]:
    """Delete the layout's objects at the end, and the marker of the place if it was not there before."""
    with unusable(store.name):
        marked = ROOT_MARKER in _names(store)
    try:
        yield
    finally:
        with unavailable("delete doctor's blocks in", store.name):
            for page in obstore.list(store.bucket, f"{layout.fingerprint().hex()}/"):
                for item in page:
                    obstore.delete(store.bucket, item["path"])
            namespaces = {name for name in _names(store) if is_namespace(name)}
            if not marked and namespaces <= {layout.fingerprint().hex()}:  # some services keep empty folders
                obstore.delete(store.bucket, ROOT_MARKER)


def object_path(layout: BlockLayout, key: bytes) -> str:
    """The object of a block, as docs/design/block-format.md has it."""
    return f"{layout.fingerprint().hex()}/{key.hex()[:2]}/{key.hex()}"


def _names(store: ObjectStore) -> list[str]:
    """What lies at the top of the store's place."""
    found = obstore.list_with_delimiter(store.bucket)
    return [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
