"""The model as an engine announces it, for agents of engines that know their memory only when they run."""

import asyncio
import contextlib
import logging
import socket
from pathlib import Path

from dualpath.core import engine_wire, wire
from dualpath.core.errors import ProtocolError, TransferError
from dualpath.core.model import ModelSpec
from dualpath.node.engines import HELLO_DEADLINE_S, listening
from dualpath.transport.fds import receive_message_async, send_message_async

log = logging.getLogger("dualpath.node")


async def announced_spec(path: Path) -> ModelSpec:
    """The model of the first engine that says hello at `path`; it is asked to say it again to the agent proper."""
    decoder, loop = wire.Decoder(engine_wire.EngineToAgent), asyncio.get_running_loop()
    log.info("waiting at %s for the first engine, to learn the model", path)
    with listening(path) as listener:
        while True:
            sock, _ = await loop.sock_accept(listener)
            with sock, contextlib.suppress(ProtocolError, TransferError, OSError):
                sock.setblocking(False)
                async with asyncio.timeout(HELLO_DEADLINE_S):
                    hello = decoder.decode((await receive_message_async(sock))[0])
                    if isinstance(hello, engine_wire.EngineHello):
                        await _answer(sock, hello)
                        if hello.version == wire.PROTOCOL_VERSION:
                            return hello.spec


async def _answer(sock: socket.socket, hello: engine_wire.EngineHello) -> None:
    answer: wire.Message = engine_wire.HelloAgain()
    if hello.version != wire.PROTOCOL_VERSION:
        answer = engine_wire.EngineRefused(
            f"it speaks protocol {hello.version}, the agent {wire.PROTOCOL_VERSION}; install the same version"
        )
    await send_message_async(sock, wire.encode(answer))
