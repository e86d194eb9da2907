"""The process of the scheduler."""

import asyncio
import contextlib
import gc
import logging
import signal

import zmq

from dualpath.control.sockets import Door
from dualpath.core import wire
from dualpath.core.config import CONTROL, Config
from dualpath.core.errors import ConfigError, ProtocolError, StoreError, StoreUnavailable
from dualpath.core.model import ModelSpec
from dualpath.core.secret import cluster_key
from dualpath.core.served import served_spec
from dualpath.scheduler.index import PrefixIndex
from dualpath.scheduler.server import Scheduler
from dualpath.store.base import Store
from dualpath.store.open import open_store
from dualpath.store.threaded import ThreadedStore

log = logging.getLogger("dualpath.scheduler")


# With tens of thousands of requests a full collection takes 50 ms, and by default there are several a minute.
GC_THRESHOLD = (20_000, 10, 100)
INDEX_DEADLINE_S = 30.0  # a store that takes longer to list is listed while the first requests are served


def run(config: Config) -> None:
    """Run the scheduler until SIGTERM; ConfigError when the store or the endpoint cannot be used."""
    asyncio.run(_run(config))


async def _run(config: Config) -> None:
    task = asyncio.current_task()
    assert task is not None
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, task.cancel)
    key = cluster_key(config.network.key_file)
    with contextlib.suppress(asyncio.CancelledError):
        await _serve_model(config, key)


async def _serve_model(config: Config, key: bytes | None) -> None:
    if config.engine.kind == "reference":
        spec = served_spec(config)
    else:
        spec = await announced_spec(config.scheduler_endpoint, key)
    store = open_store(config.store_of(CONTROL), spec.layout)
    try:
        await _serve(config, spec, store, key)
    finally:
        await store.close()


async def announced_spec(endpoint: str, key: bytes | None) -> ModelSpec:
    """The model of the first node that says hello, which it does again and again until it is accepted."""
    decoder = wire.Decoder(wire.ToScheduler)
    with contextlib.closing(Door(zmq.ROUTER, key)) as door:
        log.info("waiting at %s for the first node, to learn the model", door.bind(endpoint))
        admitting = asyncio.create_task(door.admit())
        try:
            while True:
                _, *body = await door.socket.recv_multipart()
                with contextlib.suppress(ProtocolError):
                    message = decoder.decode(b"".join(body))
                    if isinstance(message, wire.NodeHello) and message.version == wire.PROTOCOL_VERSION:
                        return message.spec
        finally:
            admitting.cancel()
            await asyncio.gather(admitting, return_exceptions=True)


async def _serve(config: Config, spec: ModelSpec, store: Store, key: bytes | None) -> None:
    try:
        await store.open()
    except StoreUnavailable as error:
        raise ConfigError(f"the store cannot be used: {error}; check --store, its free space and permissions") from None
    index = PrefixIndex()
    rebuilding = asyncio.create_task(rebuild(index, store))
    try:
        await asyncio.wait({rebuilding}, timeout=INDEX_DEADLINE_S)
        gc.set_threshold(*GC_THRESHOLD)
        await Scheduler(config, spec, index).run(config.scheduler_endpoint, key)
    finally:
        rebuilding.cancel()
        await asyncio.gather(rebuilding, return_exceptions=True)


async def rebuild(index: PrefixIndex, store: Store) -> None:
    """Fill the index with what the store holds: hits survive restarts. A part of it will do: it is a hint."""
    try:
        async for key in store.keys():
            index.add_durable([key])
        log.info("the store holds %d blocks of this model", len(index))
        if isinstance(store, ThreadedStore):
            for line in await store.other_layouts():
                log.warning("the store also holds %s; they are no hits here, and nothing frees their space", line)
    except StoreError as error:
        log.warning("the prefix index starts with %d blocks only: %s", len(index), error)
    except Exception:
        log.exception("the prefix index starts with %d blocks only", len(index))
