"""The agent's side of its engines: the socket at which they attach, and one link each."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dualpath.core import engine_wire, wire
from dualpath.core.errors import ConfigError, ProtocolError, TransferError
from dualpath.core.ids import EngineId
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
_BATCHES_BOUND = 4096  # batches under way, and the finished prefills that wait behind them


class EngineLink:
    """One attached engine."""

    def __init__(self, engine: EngineId, role: Role, hello: engine_wire.EngineHello, sock: socket.socket) -> None:
        self.engine = engine
        self.hello = hello
        self.stream: LayerStream | None = None  # of a prefill engine
        self.batches: asyncio.Queue[engine_wire.StreamBatch | wire.PrefillFinished] = asyncio.Queue(_BATCHES_BOUND)
        self.serving = not hello.url  # may be given work
        self.stats = EngineStats(engine, role)
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
        engines: Sequence[EngineId],
        role: Role,
        layout: BlockLayout,
        arena: Arena,
        new_stream: Callable[[EngineId, engine_wire.EngineHello], LayerStream],
        attached: Callable[[EngineLink], Awaitable[None]],
        received: Callable[[EngineLink, Any], None],
    ) -> None:
        self._path = path
        self._engines = engines
        self._role = role
        self._layout = layout
        self._arena = arena
        self._new_stream = new_stream
        self._attached = attached
        self._received = received
        self._decoder = wire.Decoder(engine_wire.EngineToAgent)
        self._connections: set[asyncio.Task[None]] = set()
        self.links: dict[EngineId, EngineLink] = {}

    async def run(self) -> None:
        """Accept engines until cancelled."""
        with listening(self._path) as listener:
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
            link, shares = None, False
            try:
                async with asyncio.timeout(HELLO_DEADLINE_S):
                    hello = self._decoder.decode((await receive_message_async(sock))[0])
                    if isinstance(hello, engine_wire.RankHello):
                        shares = await self._share(hello, sock)
                    else:
                        link = await self._welcome(hello, sock)
                if link:
                    await self._converse(link, sock)
                elif shares:
                    await receive_message_async(sock)  # a rank says nothing more: this ends with its connection
            except (ProtocolError, TransferError, OSError) as error:  # TimeoutError is an OSError
                log.warning("lost an engine's connection: %s", error or repr(error))
            except Exception:
                log.exception("cut off an engine")
            finally:
                if link:
                    self._leave(link)

    async def _welcome(self, hello: object, sock: socket.socket) -> EngineLink | None:
        if not isinstance(hello, engine_wire.EngineHello):
            raise ProtocolError("an engine must say hello first")
        engine = hello.engine or self._free_engine()
        await self._predecessor_gone(engine)
        refusal = self._refuses(engine, hello)
        link = EngineLink(engine, self._role, hello, sock)
        if not refusal and self._role is Role.PREFILL:
            try:
                link.stream = self._new_stream(engine, hello)
            except ConfigError as error:
                refusal = str(error)
        if refusal:
            await self._refuse(sock, refusal)
            return None
        self.links[engine] = link
        try:
            await send_message_async(sock, wire.encode(engine_wire.EngineAccepted(engine, self._role)))
        except BaseException:
            self._leave(link)
            raise
        return link

    def _free_engine(self) -> EngineId:
        """For an engine that has no name yet; the last one when none is free, as its predecessor may be dying."""
        return next((e for e in self._engines if e not in self.links), self._engines[-1])

    async def _refuse(self, sock: socket.socket, refusal: str) -> None:
        log.warning("refused an engine: %s", refusal)
        await send_message_async(sock, wire.encode(engine_wire.EngineRefused(refusal)))

    async def _predecessor_gone(self, engine: EngineId) -> None:
        """A restarted engine may come before its predecessor's connection is cleaned up."""
        old = self.links.get(engine)
        if old:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TAKEOVER_DEADLINE_S):
                    await old.gone.wait()

    async def _share(self, hello: engine_wire.RankHello, sock: socket.socket) -> bool:
        """Give a rank its memory; whether it got it."""
        link = self.links.get(hello.engine)
        if refusal := _refuses_rank(hello, link):
            await self._refuse(sock, refusal)
            return False
        assert link is not None
        fds, stream = [self._arena.memory.fd], link.stream
        if stream:
            rank = stream.ranks[hello.rank]
            fds += [stream.window.fd, rank.memory.fd, rank.engine_bell, rank.agent_bell]
        await send_message_async(sock, wire.encode(engine_wire.RankAccepted(self._role)), fds)
        return True

    def _refuses(self, engine: EngineId, hello: engine_wire.EngineHello) -> str | None:
        if hello.version != wire.PROTOCOL_VERSION:
            return f"it speaks protocol {hello.version}, the agent {wire.PROTOCOL_VERSION}; install the same version"
        if hello.role not in (None, self._role):
            return f"it is a {hello.role} engine, this is a {self._role} node"
        if engine not in self._engines:
            return f"{engine} is no engine of this node, which has {', '.join(self._engines)}; start it elsewhere"
        if hello.spec.layout != self._layout:
            return (
                f"its layout is {hello.spec.layout}, the agent's {self._layout}; give both the same model and "
                "settings, or restart the cluster's roles if these are the new ones"
            )
        if engine in self.links:
            return f"an engine {engine} is attached already"
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


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket for engines at `path`, which may be left over from a predecessor."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(16)
        listener.setblocking(False)
        yield listener


def _refuses_rank(hello: engine_wire.RankHello, link: EngineLink | None) -> str | None:
    if hello.version != wire.PROTOCOL_VERSION:
        return f"it speaks protocol {hello.version}, the agent {wire.PROTOCOL_VERSION}; install the same version"
    if link is None:
        return f"no engine {hello.engine} is attached here"
    if not 0 <= hello.rank < link.hello.ranks:
        return f"rank {hello.rank} of an engine that has {link.hello.ranks}"
    return None
