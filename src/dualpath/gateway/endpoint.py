"""The endpoint that both /v1/completions and /v1/chat/completions are: read, validate, generate, answer."""

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from dualpath.core.request import Submission
from dualpath.gateway.admission import ClientStalled, put, serve_admitted
from dualpath.gateway.errors import error_body
from dualpath.gateway.schema import ChatRequest, CompletionRequest, parse
from dualpath.gateway.serve import End, Part, Service
from dualpath.gateway.timing import TIMING_HEADER, timing_comment
from dualpath.gateway.wire import Reply, usage_of


class GenerationEndpoint:
    """An ASGI app; as such it sees the client's disconnect, which cancels the request in the cluster."""

    def __init__(self, service: Service, shape: type[CompletionRequest | ChatRequest], reply: type[Reply]) -> None:
        self._service = service
        self._shape = shape
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Errors before the first byte are raised; later ones go into the stream."""
        timing = Request(scope).headers.get(TIMING_HEADER) == "1"
        await serve_admitted(self._service, receive, lambda body: self._serve(body, timing, send))

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
        await put(self._send, {"type": "http.response.start", "status": 200, "headers": raw}, self._timeout_s)

    async def body(self, data: bytes, *, more: bool) -> None:
        """A part of the body."""
        await put(self._send, {"type": "http.response.body", "body": data, "more_body": more}, self._timeout_s)

    async def event(self, value: object) -> None:
        """One server-sent event."""
        await self.body(b"data: " + msgspec.json.encode(value) + b"\n\n", more=True)


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
    await sender.body((timing_comment(end.done) if timing else b"") + b"data: [DONE]\n\n", more=False)
