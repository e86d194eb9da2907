"""The agent's side of its engines: the socket at which they attach, and one link each."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from dualpath.core import wire
from dualpath.core.errors import ProtocolError, TransferError
from dualpath.core.ids import EngineId
from dualpath.core.layout import BlockLayout
from dualpath.core.report import EngineStats, Role
from dualpath.node.arena import Arena
from dualpath.node.stream import LayerStream
from dualpath.transport.fds import receive_message_async, send_message_async

log = logging.getLogger("dualpath.node")
HELLO_DEADLINE_S = 10.0
SEND_DEADLINE_S = 60.0
_QUEUE_BOUND = 100_000


class EngineLink:
    """One attached engine."""

    def __init__(self, hello: wire.EngineHello, sock: socket.socket, stream: LayerStream | None) -> None:
        self.engine: EngineId = hello.engine
        self.hello = hello
        self.stream = stream
        self.batches: asyncio.Queue[wire.StreamBatch] = asyncio.Queue()
        self.stats = EngineStats(hello.engine, hello.role)
        self._sock = sock
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE_BOUND)

    def send(self, message: wire.Message) -> None:
        """Queue a message to the engine."""
        self._outgoing.put_nowait(wire.encode(message))

    async def pump(self) -> None:
        """Send what is queued, until cancelled or the connection is lost."""
        while True:
            body = await self._outgoing.get()
            async with asyncio.timeout(SEND_DEADLINE_S):
                await send_message_async(self._sock, body)

    def abort(self) -> None:
        """Cut the connection: the engine hangs or does not keep to the protocol."""
        self._sock.shutdown(socket.SHUT_RDWR)


class EngineServer:
    """Takes engines at a Unix socket; `serve(link)` runs as long as one is attached."""

    def __init__(
        self,
        path: Path,
        role: Role,
        layout: BlockLayout,
        arena: Arena,
        new_stream: Callable[[wire.EngineHello], LayerStream],
        attached: Callable[[EngineLink], Awaitable[None]],
        received: Callable[[EngineLink, Any], None],
    ) -> None:
        self._path = path
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
            while True:
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                task = asyncio.create_task(self._serve(sock))
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)

    async def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.setblocking(False)
            try:
                async with asyncio.timeout(HELLO_DEADLINE_S):
                    link = await self._welcome(sock)
            except (ProtocolError, TransferError, OSError, TimeoutError) as error:
                log.warning("an engine could not attach: %s", error)
                return
            if link:
                await self._converse(link, sock)

    async def _welcome(self, sock: socket.socket) -> EngineLink | None:
        hello = self._decoder.decode((await receive_message_async(sock))[0])
        if not isinstance(hello, wire.EngineHello):
            raise ProtocolError("an engine must say hello first")
        refusal = self._refuses(hello)
        if refusal:
            await send_message_async(sock, wire.encode(wire.EngineRefused(refusal)))
            return None
        stream = self._new_stream(hello) if hello.role is Role.PREFILL else None
        fds = [self._arena.memory.fd]
        if stream:
            fds += [stream.window.fd, stream.control_memory.fd, stream.engine_bell, stream.agent_bell]
        accepted = wire.EngineAccepted(self._arena.memory.size_bytes, stream.window.size_bytes if stream else 0)
        await send_message_async(sock, wire.encode(accepted), fds)
        return EngineLink(hello, sock, stream)

    def _refuses(self, hello: wire.EngineHello) -> str | None:
        if hello.version != wire.PROTOCOL_VERSION:
            return f"it speaks protocol {hello.version}, the agent {wire.PROTOCOL_VERSION}; install the same version"
        if hello.role is not self._role:
            return f"it is a {hello.role} engine, this is a {self._role} node"
        if hello.layout != self._layout:
            return f"its layout is {hello.layout}, the agent's {self._layout}; give both the same model and settings"
        if hello.engine in self.links:
            return f"an engine {hello.engine} is attached already"
        return None

    async def _converse(self, link: EngineLink, sock: socket.socket) -> None:
        self.links[link.engine] = link
        serving = [asyncio.create_task(link.pump()), asyncio.ensure_future(self._attached(link))]
        try:
            while True:
                body, _ = await receive_message_async(sock)
                self._received(link, self._decoder.decode(body))
        except (ProtocolError, TransferError, OSError) as error:
            log.info("engine %s left: %s", link.engine, error)
        finally:
            del self.links[link.engine]
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
            if link.stream:
                link.stream.close()
