"""The process of a node agent: store, transport and NICs put together, and the connection to the scheduler."""

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import signal
import time
from collections.abc import Coroutine
from typing import Any

import zmq
import zmq.asyncio

from dualpath.control.sockets import connect_watched, reconnections
from dualpath.core import wire
from dualpath.core.config import Config
from dualpath.core.errors import ConfigError, ProtocolError, StoreError
from dualpath.core.hostprofile import load_host_profile
from dualpath.core.ids import NodeId
from dualpath.core.keys import KEY_BYTES
from dualpath.core.model import ModelSpec
from dualpath.core.report import NodeStats, Role
from dualpath.core.secret import cluster_key
from dualpath.core.served import served_spec
from dualpath.node.agent import Agent
from dualpath.node.announced import announced_spec
from dualpath.store.base import Store
from dualpath.store.open import open_store
from dualpath.store.throttled import ThrottledStore
from dualpath.transport.nic import NicPair
from dualpath.transport.open import open_transport

log = logging.getLogger("dualpath.node")
LOOK_UPS = 2  # of the store's workers, beside those for reads and writes


def run(config: Config, node: NodeId) -> None:
    """Run the agent of `node` until SIGTERM; ConfigError when it cannot work as configured."""
    try:
        asyncio.run(_until_terminated(_run(config, node)))
    except ExceptionGroup as group:
        raise _first(group) from None


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """The error that ended a group of tasks."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def _until_terminated(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _run(config: Config, node: NodeId) -> None:
    key = cluster_key(config.network.key_file)
    path = config.agent_socket(node)
    spec = served_spec(config) if config.engine.kind == "reference" else await announced_spec(path)
    role = Role.PREFILL if node in config.prefill_nodes else Role.DECODE
    profiled = profiled_read_rate(config.storage.profile)
    paced = config.storage.pacing == "software"
    rate = config.snic_bytes_per_s if paced else None
    storage = open_store(
        config.store_of(node), spec.layout, page_cache=config.storage.page_cache == "keep",
        workers=config.storage.read_concurrency + config.storage.write_concurrency + LOOK_UPS,
    )  # fmt: skip
    store: Store = ThrottledStore(storage, spec.layout, rate, rate)
    nics = NicPair(config.cnic_bytes_per_s if paced else None)
    transport = open_transport(
        config.storage.transport, host=config.host_of(node).address, nics=nics,
        deadline_s=config.limits.transfer_deadline_s, key=key,
    )  # fmt: skip
    link = SchedulerLink(config.scheduler_endpoint, key)
    async with contextlib.AsyncExitStack() as ends:
        ends.push_async_callback(store.close)
        ends.callback(link.close)
        read_rate = await probe_store(store, spec, node, config.limits.read_deadline_s)
        await transport.start()
        agent = Agent(config, spec, NodeStats(node, role), store, transport, nics, link.send)
        agent.rate.per_s = read_rate if profiled is None else min(profiled, rate or profiled)
        ends.push_async_callback(agent.close)
        ends.push_async_callback(transport.close)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(agent.engines.run())
            tasks.create_task(link.converse(agent, transport.address, config.limits.heartbeat_s))


def profiled_read_rate(file: str) -> float | None:
    """Bytes a second that the host profile gives for storage; None without a profile. ConfigError: it has none."""
    if not file:
        return None
    storage = load_host_profile(file).storage
    if storage is None or storage.snic_read_bytes_per_s <= 0:
        raise ConfigError(
            f"the host profile {file} has no read rate: run dualpath doctor with --store and --json {file}"
        )
    return storage.snic_read_bytes_per_s


async def probe_store(store: Store, spec: ModelSpec, node: NodeId, deadline_s: float) -> float:
    """Open the store and try it: bytes a second of one block written and read back, until real reads tell more.

    ConfigError when the store cannot be used.
    """
    key = hashlib.blake2b(node.encode(), digest_size=KEY_BYTES, person=b"dualpath-probe").digest()
    block = memoryview(bytearray(os.urandom(spec.layout.block_bytes)))
    try:
        async with asyncio.timeout(deadline_s):
            await store.open()
            await store.delete(key)
            await store.write(key, block)
            start_ns = time.monotonic_ns()
            await store.read(key, block)
            elapsed_ns = max(1, time.monotonic_ns() - start_ns)
            await store.delete(key)
    except TimeoutError:
        raise ConfigError(f"the store did not take and return a block in {deadline_s:g} s; check --store") from None
    except StoreError as error:
        raise ConfigError(f"the store cannot be used: {error}; check --store, its free space and permissions") from None
    return spec.layout.block_bytes * 1e9 / elapsed_ns


class SchedulerLink:
    """The DEALER socket to the scheduler; survives its restarts."""

    def __init__(self, endpoint: str, key: bytes | None = None) -> None:
        """`key`: the cluster's, needed on other addresses than loopback."""
        self._endpoint = endpoint
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"agent-" + secrets.token_bytes(8))  # the same after a reconnection
        self._monitor = connect_watched(self._socket, endpoint, key)
        self._decoder = wire.Decoder(wire.ToAgent)
        self._incarnation = ""  # of the scheduler that took us in; empty: none
        self._resetting = False
        self._stale = False  # the connection was lost, and messages with it: the next acceptance begins a new life

    def send(self, message: wire.Message) -> None:
        """Queue a message; dropped while no scheduler has taken us in, for it would know nothing of its subject.

        Never waits: without a high-water mark ZeroMQ takes every message at once, in order.
        """
        if not self._socket.closed and (self._incarnation or isinstance(message, wire.NodeHello)):
            self._socket.send(wire.encode(message))

    async def converse(self, agent: Agent, address: str, heartbeat_s: float) -> None:
        """Say hello until accepted, then report and obey. ConfigError when the scheduler refuses the node."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat(agent, address, heartbeat_s))
            tasks.create_task(self._receive(agent, address))
            tasks.create_task(self._rejoin(agent, address))

    async def _rejoin(self, agent: Agent, address: str) -> None:
        """Neither side knows what a lost connection took with it, so we join anew, as after a crash."""
        async for _ in reconnections(self._monitor, self._endpoint):
            log.warning("the connection to the scheduler was lost; joining again")
            self._stale = True
            self.send(agent.hello(address))

    async def _beat(self, agent: Agent, address: str, heartbeat_s: float) -> None:
        while True:
            if not self._resetting:
                self.send(agent.report() if self._incarnation else agent.hello(address))
            await asyncio.sleep(heartbeat_s)

    async def _receive(self, agent: Agent, address: str) -> None:
        while True:
            try:
                message = self._decoder.decode(await self._socket.recv())
            except ProtocolError as error:
                log.error("dropped a message of the scheduler: %s", error)
                continue
            if isinstance(message, wire.NodeAccepted):
                await self._on_accepted(agent, message)
            elif isinstance(message, wire.NodeRefused):
                raise ConfigError(f"the scheduler refuses this node: {message.message}")
            elif isinstance(message, wire.Rejoin):
                await self._on_rejoin(agent, address)
            else:
                agent.receive(message)

    async def _on_accepted(self, agent: Agent, message: wire.NodeAccepted) -> None:
        """Hellos may be answered more than once, and by a scheduler that has restarted in between."""
        if message.incarnation == self._incarnation and not self._stale:
            return
        self._stale = False
        if self._incarnation:
            await self._reset(agent)
        self._incarnation = message.incarnation
        agent.announce_engines()

    async def _on_rejoin(self, agent: Agent, address: str) -> None:
        if self._incarnation:  # one Rejoin comes for every report
            log.warning("the scheduler does not know this node; dropping its work and joining again")
            await self._reset(agent)
            self.send(agent.hello(address))

    async def _reset(self, agent: Agent) -> None:
        self._incarnation, self._resetting = "", True
        try:
            await agent.reset()
        finally:
            self._resetting = False

    def close(self) -> None:
        """Close the socket; later messages are dropped."""
        self._socket.close()
        self._monitor.close()
