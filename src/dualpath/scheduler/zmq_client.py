"""SchedulerClient over ZeroMQ: requests to the scheduler, tokens straight from the engines.

Survives a restart of the scheduler: what was under way is submitted again. Sampling is keyed by (seed, position), so
the tokens that come again are the same; those that were delivered already are left out.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import zmq
import zmq.asyncio

from dualpath.control.sockets import Door, connect_watched, reconnections
from dualpath.core import wire
from dualpath.core.errors import ProtocolError, RequestError, ServiceError
from dualpath.core.ids import RequestId
from dualpath.core.model import ModelSpec
from dualpath.core.report import ClusterReport
from dualpath.core.request import Done, Ready, Submission, Tokens

log = logging.getLogger("dualpath.gateway")
HEARTBEAT_S = 0.5
REPORT_DEADLINE_S = 5.0
SCHEDULER_SILENCE_S = 60.0  # after which requests under way fail; a restart takes less
TOKENS_DEADLINE_S = 30.0  # for tokens that are on their way when the scheduler says that all were sent


class TokenSequence:
    """Puts token messages, which come in any order and repeatedly, into one sequence without repetition."""

    def __init__(self) -> None:
        self.delivered = 0
        self._early: dict[int, tuple[int, float]] = {}

    def add(self, tokens: Tokens) -> Tokens | None:
        """Take a message; returns the tokens that can be delivered now, None if there are none."""
        for index, pair in enumerate(zip(tokens.ids, tokens.gaps, strict=False), tokens.index):
            if index >= self.delivered:
                self._early.setdefault(index, pair)
        start, ready = self.delivered, []
        while self.delivered in self._early:
            ready.append(self._early.pop(self.delivered))
            self.delivered += 1
        return Tokens(tokens.request, start, [i for i, _ in ready], [g for _, g in ready]) if ready else None


@dataclass
class _Stream:
    submission: Submission
    tokens: TokenSequence = field(default_factory=TokenSequence)
    events: asyncio.Queue[Tokens | Ready | Done | wire.Refused] = field(default_factory=asyncio.Queue)
    by_http: bool = False  # the engines answer calls instead of sending tokens


class ZmqSchedulerClient:
    """Make it with `connect`; its tasks run until closed."""

    def __init__(self, endpoint: str, tokens_endpoint: str, key: bytes | None = None) -> None:
        self._endpoint = endpoint
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"gateway-" + secrets.token_bytes(8))  # the same after a reconnection
        self._monitor = connect_watched(self._socket, endpoint, key)
        self._door = Door(zmq.PULL, key)
        self._tokens = self._door.socket
        self._tokens.setsockopt(zmq.RCVHWM, 0)
        self._reply_to = self._door.bind(tokens_endpoint)
        self._decoder = wire.Decoder(wire.ToGateway)
        self._streams: dict[RequestId, _Stream] = {}
        self._reports: list[asyncio.Future[ClusterReport]] = []
        self._welcome: wire.Welcome | None = None
        self._welcomed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._heard_s = time.monotonic()

    @classmethod
    async def connect(
        cls, endpoint: str, tokens_endpoint: str, deadline_s: float, key: bytes | None = None
    ) -> "ZmqSchedulerClient":
        """Connect and wait for the scheduler's welcome; ServiceError when it does not come.

        Engines send tokens to `tokens_endpoint`. `key`: the cluster's, needed on other addresses than loopback.
        """
        client = cls(endpoint, tokens_endpoint, key)
        works = (client._beat(), client._receive(), client._receive_tokens(), client._rejoin(), client._door.admit())
        client._tasks = [asyncio.create_task(work) for work in works]
        try:
            async with asyncio.timeout(deadline_s):
                await client._welcomed.wait()
        except TimeoutError:
            await client.close()
            raise ServiceError(
                f"no scheduler answers at {endpoint}; is it running, with the same network.key_file?"
            ) from None
        return client

    @property
    def spec(self) -> ModelSpec:
        """The model that the cluster serves."""
        assert self._welcome is not None
        return self._welcome.spec

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt + max_tokens that the cluster can hold."""
        assert self._welcome is not None
        return self._welcome.max_request_tokens

    @property
    def urls(self) -> list[str]:
        """Decode engines that take requests by HTTP."""
        assert self._welcome is not None
        return self._welcome.urls

    async def submit(self, submission: Submission) -> AsyncIterator[Tokens | Ready | Done]:
        """Serve a request; see SchedulerClient."""
        stream = self._streams[submission.request] = _Stream(submission)
        self._send(wire.Submit(submission, self._reply_to))
        done: Done | None = None
        refused: wire.Refused | None = None
        try:
            while done is None or not (stream.by_http or stream.tokens.delivered >= done.completion_tokens):
                event = await self._next(stream, TOKENS_DEADLINE_S if done else None)
                if isinstance(event, Done):
                    done = event
                elif isinstance(event, wire.Refused):
                    refused = event
                    raise RequestError(event.message) if event.by_request else ServiceError(event.message)
                elif isinstance(event, Ready):
                    stream.by_http = True
                    yield event
                elif tokens := stream.tokens.add(event):
                    yield tokens
            yield done
        finally:
            del self._streams[submission.request]
            if not (done or refused):
                self._send(wire.Cancel(submission.request))

    async def _next(self, stream: _Stream, deadline_s: float | None) -> Tokens | Ready | Done | wire.Refused:
        """The next event. Without a deadline it comes at the latest when the scheduler counts as gone (`_beat`)."""
        try:
            async with asyncio.timeout(deadline_s):
                return await stream.events.get()
        except TimeoutError:
            raise ServiceError("the engine's last tokens were lost on their way; try again") from None

    async def report(self) -> ClusterReport:
        """The cluster's state now."""
        answer: asyncio.Future[ClusterReport] = asyncio.get_running_loop().create_future()
        self._reports.append(answer)
        self._send(wire.GetReport())
        try:
            async with asyncio.timeout(REPORT_DEADLINE_S):
                return await answer
        except TimeoutError:
            raise ServiceError("the scheduler does not answer; it may be restarting") from None
        finally:
            if answer in self._reports:
                self._reports.remove(answer)

    async def close(self) -> None:
        """Stop; requests under way end with a ServiceError at their callers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._refuse_all("the gateway is ending; try again")
        self._socket.close()
        self._monitor.close()
        self._door.close()

    def _send(self, message: wire.Message) -> None:
        """Queue a message; without a high-water mark ZeroMQ takes every message at once, in order."""
        if not self._socket.closed:
            self._socket.send(wire.encode(message))

    def _refuse_all(self, why: str) -> None:
        for request, stream in self._streams.items():
            stream.events.put_nowait(wire.Refused(request, why, by_request=False))

    async def _beat(self) -> None:
        while True:
            self._send(wire.GatewayHello(wire.PROTOCOL_VERSION))
            await asyncio.sleep(HEARTBEAT_S)
            if self._streams and time.monotonic() - self._heard_s > SCHEDULER_SILENCE_S:
                self._refuse_all(f"the scheduler has not answered for {SCHEDULER_SILENCE_S:g} s; try again")

    async def _receive(self) -> None:
        while True:
            data = await self._socket.recv()
            self._heard_s = time.monotonic()
            try:
                self._on_message(self._decoder.decode(data))
            except ProtocolError as error:
                log.error("dropped a message of the scheduler: %s", error)

    def _on_message(self, message: Any) -> None:
        if isinstance(message, wire.Welcome):
            self._on_welcome(message)
        elif isinstance(message, wire.Report):
            for answer in self._reports:
                if not answer.done():
                    answer.set_result(message.report)
            self._reports.clear()
        elif message.request in self._streams:
            self._streams[message.request].events.put_nowait(message)

    def _on_welcome(self, message: wire.Welcome) -> None:
        restarted = self._welcome is not None and self._welcome.incarnation != message.incarnation
        self._welcome = message
        self._welcomed.set()
        if restarted:
            self._submit_again("the scheduler restarted")

    async def _rejoin(self) -> None:
        """A connection that broke may have taken submissions and their ends with it."""
        async for _ in reconnections(self._monitor, self._endpoint):
            self._submit_again("the connection to the scheduler was lost")

    def _submit_again(self, why: str) -> None:
        """The scheduler ignores what it has; what it had finished comes again, and is delivered once."""
        log.warning("%s; submitting %d requests again", why, len(self._streams))
        for stream in self._streams.values():
            self._send(wire.Submit(stream.submission, self._reply_to))

    async def _receive_tokens(self) -> None:
        decoder = wire.Decoder(wire.EngineToGateway)
        while True:
            data = await self._tokens.recv()
            try:
                message = decoder.decode(data)
            except ProtocolError as error:
                log.error("dropped an engine's message: %s", error)
                continue
            if message.request in self._streams:
                self._streams[message.request].events.put_nowait(message)
