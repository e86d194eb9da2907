"""The process of the scheduler."""

import asyncio
import contextlib
import logging
import signal

from dualpath.core.config import Config
from dualpath.core.served import served_spec
from dualpath.scheduler.index import PrefixIndex
from dualpath.scheduler.server import Scheduler
from dualpath.store.base import Store
from dualpath.store.open import open_store

log = logging.getLogger("dualpath.scheduler")


def run(config: Config) -> None:
    """Run the scheduler until SIGTERM."""
    asyncio.run(_run(config))


async def _run(config: Config) -> None:
    task = asyncio.current_task()
    assert task is not None
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, task.cancel)
    spec = served_spec(config)
    store = open_store(config.storage.path, spec.layout)
    index = PrefixIndex()
    with contextlib.suppress(asyncio.CancelledError):
        await store.open()
        await rebuild(index, store)
        await Scheduler(config, spec, index).run(config.scheduler_endpoint)
    await store.close()


async def rebuild(index: PrefixIndex, store: Store) -> None:
    """Fill the index with what the store holds: hits survive restarts."""
    stored = store.keys()
    index.add_durable([key async for key in stored])
    log.info("the store holds %d blocks of this model", len(index))
