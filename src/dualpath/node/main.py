"""The process of a node agent: store, transport and NICs put together, and the connection to the scheduler."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Coroutine
from typing import Any

import zmq
import zmq.asyncio

from dualpath.core import wire
from dualpath.core.config import Config
from dualpath.core.errors import ConfigError
from dualpath.core.ids import NodeId
from dualpath.core.keys import KEY_BYTES
from dualpath.core.model import ModelSpec
from dualpath.core.report import NodeStats, Role
from dualpath.core.served import served_spec
from dualpath.node.agent import Agent
from dualpath.store.base import Store
from dualpath.store.open import open_store
from dualpath.store.throttled import ThrottledStore
from dualpath.transport.nic import NicPair
from dualpath.transport.open import open_transport

log = logging.getLogger("dualpath.node")


def run(config: Config, node: NodeId) -> None:
    """Run the agent of `node` until SIGTERM."""
    asyncio.run(_until_terminated(_run(config, node)))


async def _until_terminated(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _run(config: Config, node: NodeId) -> None:
    spec = served_spec(config)
    role = Role.PREFILL if node in config.prefill_nodes else Role.DECODE
    stats = NodeStats(node, role)
    rate = config.snic_bytes_per_s
    store: Store = ThrottledStore(open_store(config.storage.path, spec.layout), spec.layout, rate, rate)
    await store.open()
    nics = NicPair(config.cnic_bytes_per_s)
    transport = open_transport(config.storage.transport, nics=nics, deadline_s=config.limits.transfer_deadline_s)
    await transport.start()
    link = SchedulerLink(config.scheduler_endpoint)
    agent = Agent(config, spec, stats, store, transport, nics, link.send)
    agent.rate.bytes_per_s = await probe_read_rate(store, spec)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(agent.engines.run())
            tasks.create_task(link.converse(agent, transport.address, config.limits.heartbeat_s))
    finally:
        link.close()
        await agent.close()
        await transport.close()
        await store.close()


async def probe_read_rate(store: Store, spec: ModelSpec) -> float:
    """Bytes a second of one block written and read back: a first guess, until real reads tell more."""
    key, block = os.urandom(KEY_BYTES), memoryview(bytearray(os.urandom(spec.layout.block_bytes)))
    await store.write(key, block)
    start_ns = time.monotonic_ns()
    await store.read(key, block)
    took_ns = time.monotonic_ns() - start_ns
    await store.delete(key)
    return spec.layout.block_bytes * 1e9 / max(1, took_ns)


class SchedulerLink:
    """The DEALER socket to the scheduler; survives its restarts."""

    def __init__(self, endpoint: str) -> None:
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
        self._socket.connect(endpoint)
        self._accepted = False

    def send(self, message: wire.Message) -> None:
        """Queue a message; dropped while no scheduler has taken us in, for it would know nothing of its subject."""
        if self._accepted or isinstance(message, wire.NodeHello):
            self._socket.send(wire.encode(message))

    async def converse(self, agent: Agent, address: str, heartbeat_s: float) -> None:
        """Say hello until accepted, then report and obey."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat(agent, address, heartbeat_s))
            tasks.create_task(self._receive(agent, address))

    async def _beat(self, agent: Agent, address: str, heartbeat_s: float) -> None:
        while True:
            self.send(agent.report() if self._accepted else agent.hello(address))
            await asyncio.sleep(heartbeat_s)

    async def _receive(self, agent: Agent, address: str) -> None:
        decoder = wire.Decoder(wire.ToAgent)
        while True:
            message = decoder.decode(await self._socket.recv())
            if isinstance(message, wire.NodeAccepted):
                if not self._accepted:
                    self._accepted = True
                    agent.announce_engines()
            elif isinstance(message, wire.NodeRefused):
                raise ConfigError(f"the scheduler refuses this node: {message.message}")
            elif isinstance(message, wire.Rejoin):
                await self._rejoin(agent, address)
            else:
                agent.on_message(message)

    async def _rejoin(self, agent: Agent, address: str) -> None:
        if self._accepted:
            log.warning("the scheduler does not know this node; dropping its work and joining again")
            self._accepted = False
            await agent.reset()
            self.send(agent.hello(address))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
