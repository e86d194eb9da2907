"""The agent's side of its engines: the socket at which they attach, and one link each."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from dualpath.core import wire
from dualpath.core.errors import ConfigError, ProtocolError, TransferError
from dualpath.core.ids import EngineId, NodeId, node_of
from dualpath.core.layout import BlockLayout
from dualpath.core.report import EngineStats, Role
from dualpath.node.arena import Arena
from dualpath.node.stream import LayerStream
from dualpath.transport.fds import receive_message_async, send_message_async

log = logging.getLogger("dualpath.node")
HELLO_DEADLINE_S = 10.0
TAKEOVER_DEADLINE_S = 5.0  # for the connection of an engine's predecessor to be cleaned up
SEND_DEADLINE_S = 120.0  # an engine in the middle of a batch does not read
_QUEUE_BOUND = 100_000
_BATCHES_BOUND = 16  # an engine announces one batch after the other


class EngineLink:
    """One attached engine."""

    def __init__(self, hello: wire.EngineHello, sock: socket.socket) -> None:
        self.engine: EngineId = hello.engine
        self.hello = hello
        self.stream: LayerStream | None = None  # of a prefill engine
        self.batches: asyncio.Queue[wire.StreamBatch] = asyncio.Queue(_BATCHES_BOUND)
        self.stats = EngineStats(hello.engine, hello.role)
        self.gone = asyncio.Event()
        self._sock = sock
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE_BOUND)

    def send(self, message: wire.Message) -> None:
        """Queue a message to the engine; an engine that takes none for too long is cut off."""
        try:
            self._outgoing.put_nowait(wire.encode(message))
        except asyncio.QueueFull:
            self.abort()

    async def pump(self) -> None:
        """Send what is queued, until cancelled or the connection is lost."""
        while True:
            body = await self._outgoing.get()
            async with asyncio.timeout(SEND_DEADLINE_S):
                await send_message_async(self._sock, body)

    def abort(self) -> None:
        """Cut the connection: the engine hangs or does not keep to the protocol."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


class EngineServer:
    """Takes a node's engines at a Unix socket; `attached(link)` runs as long as one is attached."""

    def __init__(
        self,
        path: Path,
        node: NodeId,
        role: Role,
        layout: BlockLayout,
        arena: Arena,
        new_stream: Callable[[wire.EngineHello], LayerStream],
        attached: Callable[[EngineLink], Awaitable[None]],
        received: Callable[[EngineLink, Any], None],
    ) -> None:
        self._path = path
        self._node = node
        self._role = role
        self._layout = layout
        self._arena = arena
        self._new_stream = new_stream
        self._attached = attached
        self._received = received
        self._decoder = wire.Decoder(wire.EngineToAgent)
        self._connections: set[asyncio.Task[None]] = set()
        self.links: dict[EngineId, EngineLink] = {}

    async def run(self) -> None:
        """Accept engines until cancelled."""
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(self._path))
            os.chmod(self._path, 0o600)
            listener.listen(16)
            listener.setblocking(False)
            try:
                while True:
                    await self._accept(listener)
            finally:
                for task in self._connections:
                    task.cancel()
                await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:  # out of descriptors, or the engine gave up: neither ends the agent
            log.warning("could not accept an engine's connection: %s", error)
            await asyncio.sleep(0.1)
            return
        task = asyncio.create_task(self._serve(sock))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.setblocking(False)
            link = None
            try:
                async with asyncio.timeout(HELLO_DEADLINE_S):
                    link = await self._welcome(sock)
                if link:
                    await self._converse(link, sock)
            except (ProtocolError, TransferError, OSError) as error:  # TimeoutError is an OSError
                log.warning("lost an engine's connection: %s", error or repr(error))
            except Exception:
                log.exception("cut off an engine")
            finally:
                if link:
                    self._leave(link)

    async def _welcome(self, sock: socket.socket) -> EngineLink | None:
        hello = self._decoder.decode((await receive_message_async(sock))[0])
        if not isinstance(hello, wire.EngineHello):
            raise ProtocolError("an engine must say hello first")
        await self._predecessor_gone(hello.engine)
        refusal = self._refuses(hello)
        link = EngineLink(hello, sock)
        if not refusal and hello.role is Role.PREFILL:
            try:
                link.stream = self._new_stream(hello)
            except ConfigError as error:
                refusal = str(error)
        if refusal:
            await send_message_async(sock, wire.encode(wire.EngineRefused(refusal)))
            return None
        self.links[link.engine] = link
        try:
            await self._accepted(link, sock)
        except BaseException:
            self._leave(link)
            raise
        return link

    async def _predecessor_gone(self, engine: EngineId) -> None:
        """A restarted engine may come before its predecessor's connection is cleaned up."""
        old = self.links.get(engine)
        if old:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TAKEOVER_DEADLINE_S):
                    await old.gone.wait()

    async def _accepted(self, link: EngineLink, sock: socket.socket) -> None:
        fds, stream = [self._arena.memory.fd], link.stream
        if stream:
            fds += [stream.window.fd, stream.control_memory.fd, stream.engine_bell, stream.agent_bell]
        accepted = wire.EngineAccepted(self._arena.memory.size_bytes, stream.window.size_bytes if stream else 0)
        await send_message_async(sock, wire.encode(accepted), fds)

    def _refuses(self, hello: wire.EngineHello) -> str | None:
        if hello.version != wire.PROTOCOL_VERSION:
            return f"it speaks protocol {hello.version}, the agent {wire.PROTOCOL_VERSION}; install the same version"
        if hello.role is not self._role:
            return f"it is a {hello.role} engine, this is a {self._role} node"
        if node_of(hello.engine) != self._node:
            return f"{hello.engine} is no engine of node {self._node}; start it with the right --run-dir"
        if hello.layout != self._layout:
            return f"its layout is {hello.layout}, the agent's {self._layout}; give both the same model and settings"
        if hello.engine in self.links:
            return f"an engine {hello.engine} is attached already"
        return None

    async def _converse(self, link: EngineLink, sock: socket.socket) -> None:
        """Until one of the three ends: what we are told, what we say, what we do for the engine."""
        serving = [
            asyncio.ensure_future(work) for work in (self._listen(link, sock), link.pump(), self._attached(link))
        ]
        try:
            done, _ = await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
        for task in done:
            task.result()

    async def _listen(self, link: EngineLink, sock: socket.socket) -> None:
        while True:
            body, _ = await receive_message_async(sock)
            self._received(link, self._decoder.decode(body))

    def _leave(self, link: EngineLink) -> None:
        del self.links[link.engine]
        if link.stream:
            link.stream.close()
        link.gone.set()
