"""The endpoint that both /v1/completions and /v1/chat/completions are: read, validate, generate, answer."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from dualpath.core.errors import RequestError
from dualpath.core.request import Submission
from dualpath.gateway.body import read_body
from dualpath.gateway.errors import error_body
from dualpath.gateway.schema import ChatRequest, CompletionRequest, parse
from dualpath.gateway.serve import End, Part, Service
from dualpath.gateway.wire import Reply, usage_of

TIMING_HEADER = "x-dualpath-timing"


class GenerationEndpoint:
    """An ASGI app; as such it sees the client's disconnect, which cancels the request in the cluster."""

    def __init__(self, service: Service, shape: type[CompletionRequest | ChatRequest], reply: type[Reply]) -> None:
        self._service = service
        self._shape = shape
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Errors before the first byte are raised; later ones go into the stream."""
        outcome = "failed"
        try:
            with self._service.admitted():
                body = await read_body(receive, self._service.limits)
                timing = Request(scope).headers.get(TIMING_HEADER) == "1"
                served = await _unless_disconnected(self._serve(body, timing, send), receive)
            outcome = "served" if served else "cancelled"
        except RequestError:
            outcome = "refused"
            raise
        finally:
            self._service.latencies.ended(outcome)

    async def _serve(self, body: bytes, timing: bool, send: Send) -> None:
        arrived_ns = time.monotonic_ns()
        request = parse(body, self._shape)
        request_id = self._reply.id_prefix + secrets.token_hex(16)
        submission, prompt = await self._service.prepare(request, request_id)
        reply = self._reply(
            request_id, request.model, int(time.time()),
            prompt_ids=prompt if request.return_token_ids else None,
            usage=bool(request.stream_options and request.stream_options.include_usage),
        )  # fmt: skip
        sender = Sender(send, request_id, self._service.limits.send_timeout_s)
        async with aclosing(self._service.generate(submission, arrived_ns)) as parts:
            if request.stream:
                await _stream(parts, submission, request, reply, sender, timing=timing)
            else:
                await _whole(parts, submission, reply, sender, timing=timing)


class ClientStalled(Exception):
    """The client took nothing for too long; it counts as gone."""


class Sender:
    """One HTTP answer; writes have a deadline: a client that reads nothing must not hold the cluster."""

    def __init__(self, send: Send, request_id: str, timeout_s: float) -> None:
        self._send = send
        self._request_id = request_id
        self._timeout_s = timeout_s

    async def start(self, content_type: str, *headers: tuple[str, str]) -> None:
        """Status line and headers."""
        pairs = [("content-type", content_type), ("x-request-id", self._request_id), *headers]
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        await self._put({"type": "http.response.start", "status": 200, "headers": raw})

    async def body(self, data: bytes, *, more: bool) -> None:
        """A part of the body."""
        await self._put({"type": "http.response.body", "body": data, "more_body": more})

    async def event(self, value: object) -> None:
        """One server-sent event."""
        await self.body(b"data: " + msgspec.json.encode(value) + b"\n\n", more=True)

    async def _put(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            raise ClientStalled from None


async def _whole(
    parts: AsyncGenerator[Part | End, None],
    submission: Submission,
    reply: Reply,
    sender: Sender,
    *,
    timing: bool,
) -> None:
    text: list[str] = []
    ids: list[int] = []
    gaps: list[float] = []
    async for part in parts:
        text.append(part.text)
        if isinstance(part, End):
            usage = usage_of(submission.prompt_tokens, part.done)
            data = msgspec.json.encode(reply.whole("".join(text), part.reason, ids, gaps, usage))
            extra = [(TIMING_HEADER, msgspec.json.encode(part.done.timeline).decode("ascii"))] if timing else []
            await sender.start("application/json", ("content-length", str(len(data))), *extra)
            await sender.body(data, more=False)
        else:
            ids += part.ids
            gaps += part.gaps


async def _stream(
    parts: AsyncGenerator[Part | End, None], submission: Submission, request: CompletionRequest | ChatRequest,
    reply: Reply, sender: Sender, *, timing: bool,
) -> None:  # fmt: skip
    part = await anext(parts)  # an error before the first token is still a plain HTTP error
    await sender.start("text/event-stream; charset=utf-8", ("cache-control", "no-cache"))
    if opening := reply.opening():
        await sender.event(opening)
    try:
        while isinstance(part, Part):
            if part.text or request.return_token_ids:
                await sender.event(reply.chunk(part.text, part.ids, part.gaps))
            part = await anext(parts)
        await _stream_end(part, submission, request, reply, sender, timing=timing)
    except ClientStalled:
        raise
    except Exception as error:
        await sender.event(error_body(error)[1])
        await sender.body(b"", more=False)
        raise


async def _stream_end(
    end: End, submission: Submission, request: CompletionRequest | ChatRequest, reply: Reply, sender: Sender,
    *, timing: bool,
) -> None:  # fmt: skip
    await sender.event(reply.chunk(end.text, [], [], end.reason))
    if request.stream_options and request.stream_options.include_usage:
        await sender.event(reply.usage_chunk(usage_of(submission.prompt_tokens, end.done)))
    comment = b": " + TIMING_HEADER.encode() + b" " + msgspec.json.encode(end.done.timeline) + b"\n\n"
    await sender.body((comment if timing else b"") + b"data: [DONE]\n\n", more=False)


async def _unless_disconnected(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Run `work`, but cancel it when the client goes away; whether it ran to its end."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        return task.done()
    except ClientStalled:
        return False
    finally:
        for other in (task, gone):
            other.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
