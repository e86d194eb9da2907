"""The gateway before engines that speak OpenAI's API themselves: it only says who computes and what is cached.

Completions and chats go through the cluster: the prompt is rendered to tokens, the scheduler assigns, the prefill
engine computes the prompt (its one token is thrown away), and the client gets the decode engine's own answer, byte for
byte. What has no one prompt of known tokens goes to a decode engine as it is, without the store.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dualpath.core.errors import RequestError, ServiceError
from dualpath.core.ids import RequestId
from dualpath.core.keys import chain_keys, fill_placeholders, pack_tokens, root_key
from dualpath.core.request import Done, Sampling, Submission
from dualpath.gateway.admission import put, serve_admitted, unless_disconnected
from dualpath.gateway.app import Pages, assemble
from dualpath.gateway.attempts import Attempts, with_grant
from dualpath.gateway.body import read_body
from dualpath.gateway.desk import ClusterDesk, Limits
from dualpath.gateway.errors import error_body
from dualpath.gateway.servers import JSON, RENDERABLE, Refusal, Rendered, Servers
from dualpath.gateway.timing import TIMING_HEADER, Stopwatch, timing_comment
from dualpath.scheduler.client import SchedulerClient

log = logging.getLogger("dualpath.gateway")
KEPT_TOKENS = 2048  # generated tokens that a request's slots hold at most: what comes later is not kept
LAST_WORD_S = 2.0  # for the scheduler's last word after the answer's end: then the next turn finds all blocks
END_OF_STREAM = b"data: [DONE]"
OWN_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server", "upgrade"}
PREFILL_DROPS = (
    "stream_options", "n", "logprobs", "top_logprobs", "prompt_logprobs", "response_format", "structured_outputs",
    "min_tokens", "stop", "max_completion_tokens",
)  # fmt: skip


def build_passthrough(
    client: SchedulerClient, *, api_key: str | None = None, limits: Limits | None = None
) -> Starlette:
    """The ASGI app; see gateway.app.build_app."""
    desk = PassDesk(client, limits or Limits(), api_key)
    rest = [Route("/{path:path}", Rest(desk), methods=["GET", "POST", "PUT", "DELETE", "PATCH"])]
    rest.insert(0, Route("/dualpath/weights", desk.rename_weights, methods=["POST"]))
    routes = [Route(path, Passthrough(desk, path), methods=["POST"]) for path in RENDERABLE]
    return assemble(routes + rest, Pages(desk), api_key)


class PassDesk(ClusterDesk):
    """The cluster, its servers, and the version of the weights."""

    def __init__(self, client: SchedulerClient, limits: Limits, api_key: str | None) -> None:
        super().__init__(client, limits)
        self.client = client
        self.servers = Servers(lambda: client.urls, api_key, limits.event_timeout_s)
        self.weights = ""  # named anew when an operator changes them under the running servers

    async def rename_weights(self, request: Request) -> Response:
        """POST /dualpath/weights: {"version": NAME}. Blocks of other versions are not found from now on."""
        version = _fields(await request.body()).get("version")
        if not isinstance(version, str):
            raise RequestError('give {"version": "a name of the new weights"}', param="version")
        self.weights = version
        return Response(status_code=204)

    def submission(self, rendered: Rendered, body: Mapping[str, Any], request_id: str) -> Submission | None:
        """A prompt with its keys; None when the cluster has no room for such a long one."""
        spec, tokens = self.spec, rendered.token_ids
        salt = f"{self.weights}\0{body.get('cache_salt') or ''}" if self.weights else body.get("cache_salt") or ""
        adapter = rendered.model if rendered.model not in (None, spec.name) else ""
        root = root_key(spec.layout, salt=salt.encode(), adapter=adapter or "")
        keyed = fill_placeholders(tokens, rendered.features.fillings() if rendered.features else [])
        room = self.max_tokens_per_request - len(tokens)
        if room < 1:
            return None
        wanted = rendered.sampling_params.max_tokens or room
        return Submission(
            RequestId(request_id), pack_tokens(tokens), root,
            tuple(chain_keys(root, pack_tokens(keyed), spec.layout.block_tokens)), min(wanted, KEPT_TOKENS, room),
            Sampling(),
        )  # fmt: skip


class Passthrough:
    """One of the two routes that are planned; an ASGI app, as such it sees the client's disconnect."""

    def __init__(self, desk: PassDesk, path: str) -> None:
        self._desk = desk
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Errors before the first byte are raised; later ones go into the stream."""
        out = Out(send, self._desk.limits, timing=Headers(scope=scope).get(TIMING_HEADER) == "1")
        await serve_admitted(self._desk, receive, lambda raw: self._serve(raw, out))

    async def _serve(self, raw: bytes, out: "Out") -> None:
        arrived_ns = time.monotonic_ns()
        body = _fields(raw)
        request_id = f"req-{secrets.token_hex(16)}"
        out.headers["x-request-id"] = request_id
        try:
            submission, rendered = await self._plan(body, request_id)
            if submission is None or rendered is None:
                await self._unplanned(body, out)
            else:
                await self._planned(body, rendered, submission, out, Stopwatch(arrived_ns), arrived_ns)
        except Refusal as refusal:
            await out.whole(refusal.response.status_code, refusal.response.headers, refusal.response.content)
        except httpx.HTTPError as error:
            raise ServiceError(f"a server is gone: {error or repr(error)}; try again") from None

    async def _plan(self, body: Mapping[str, Any], request_id: str) -> tuple[Submission | None, Rendered | None]:
        """What the scheduler is asked; nothing for requests that have no one prompt."""
        if body.get("use_beam_search") or body.get("prompt_embeds"):
            return None, None
        prompts = await self._desk.servers.render(self._path, body)
        if len(prompts) != 1:
            return None, None
        loop = asyncio.get_running_loop()
        submission = await loop.run_in_executor(None, self._desk.submission, prompts[0], body, request_id)
        return submission, prompts[0]

    async def _unplanned(self, body: Mapping[str, Any], out: "Out") -> None:
        """A decode server does all of it."""
        url = f"{self._desk.servers.any()}{self._path}"
        async with self._desk.servers.call("POST", url, msgspec.json.encode(body), JSON) as response:
            await out.all_of(response)

    async def _planned(
        self, body: Mapping[str, Any], rendered: Rendered, submission: Submission, out: "Out", watch: Stopwatch,
        arrived_ns: int,
    ) -> None:  # fmt: skip
        prefill = self._prefill_call(body, rendered)
        async with Attempts(self._desk.client, self._desk.servers, submission, prefill) as attempts:
            while True:
                ready = await attempts.decode()
                call = with_grant(body, ready.grant, int(body.get("n") or 1))
                out.headers["x-dualpath-cached-tokens"] = str(attempts.cached_tokens)
                try:
                    async with self._desk.servers.call("POST", f"{ready.url}{self._path}", call, JSON) as response:
                        await self._answer(response, attempts, out, watch)
                    break
                except httpx.HTTPError as error:
                    if out.began:
                        await out.fault(
                            ServiceError("the decode server was lost in mid-answer; send the request again")
                        )
                        return
                    log.warning("decode at %s failed, waiting for another attempt: %s", ready.url, error or repr(error))
            if out.finished_well and (done := await attempts.done(0)):
                e2e_ns = time.monotonic_ns() - arrived_ns
                self._desk.latencies.observe(watch, e2e_ns)
                self._desk.history.add(done, submission.prompt_tokens, watch, str(done.reason), e2e_ns)

    def _prefill_call(self, body: Mapping[str, Any], rendered: Rendered) -> tuple[str, Mapping[str, Any]]:
        """The same prompt for one token, which nobody reads: as tokens, or where images fill it as it came."""
        short = {"max_tokens": 1, "temperature": 0, "stream": False}
        if rendered.features:
            return self._path, {**{k: v for k, v in body.items() if k not in PREFILL_DROPS}, **short}
        call: dict[str, Any] = {"prompt": rendered.token_ids, **short}
        return "/v1/completions", {**call, **{k: body[k] for k in ("model", "cache_salt") if body.get(k)}}

    async def _answer(self, response: httpx.Response, attempts: Attempts, out: "Out", watch: Stopwatch) -> None:
        """The decode server's answer; its end waits for the scheduler's last word, and with it all blocks' news."""
        if response.status_code != httpx.codes.OK or "event-stream" not in response.headers.get("content-type", ""):
            content = await response.aread()
            if response.status_code == httpx.codes.OK:
                watch.saw(1, time.monotonic_ns())
                out.note(await self._last_word(attempts))
            await out.whole(response.status_code, response.headers, content)
            return
        await out.start(response.status_code, response.headers)
        async for chunk in response.aiter_raw():
            watch.saw(1, time.monotonic_ns())
            if END_OF_STREAM in chunk:
                await out.comment(await self._last_word(attempts))
            await out.part(chunk)
        await out.end()

    async def _last_word(self, attempts: Attempts) -> Done | None:
        done = await attempts.done(LAST_WORD_S)
        if done is None:
            log.warning("no last word of the scheduler in %g s; the next turn may find fewer blocks", LAST_WORD_S)
        return done


class Rest:
    """Everything else that the servers answer, passed on as it is."""

    def __init__(self, desk: PassDesk) -> None:
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask a decode server."""
        with self._desk.admitted():
            raw = await read_body(receive, self._desk.limits)
            await unless_disconnected(self._serve(scope, raw, Out(send, self._desk.limits)), receive)

    async def _serve(self, scope: Scope, raw: bytes, out: "Out") -> None:
        url = self._desk.servers.any() + scope["path"]
        if scope["query_string"]:
            url += "?" + scope["query_string"].decode("latin-1")
        kept = {"accept", "content-type"}
        headers = {name: value for name, value in Headers(scope=scope).items() if name in kept}
        try:
            async with self._desk.servers.call(scope["method"], url, raw, headers) as response:
                await out.all_of(response)
        except httpx.HTTPError as error:
            if out.began:
                raise
            raise ServiceError(f"a server is gone: {error or repr(error)}; try again") from None


class Out:
    """The answer to the client; every write has a deadline."""

    def __init__(self, send: Send, limits: Limits, *, timing: bool = False) -> None:
        """With `timing` the scheduler's timeline goes into the answer, as the reference engine's gateway has it."""
        self._send = send
        self._timing = timing
        self._timeout_s = limits.send_timeout_s
        self.headers: dict[str, str] = {}
        self.began = False
        self.finished_well = False

    async def start(self, status: int, headers: httpx.Headers) -> None:
        """Status line, the server's headers and ours."""
        pairs = [(k, v) for k, v in headers.multi_items() if k.lower() not in OWN_HEADERS | self.headers.keys()]
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in [*pairs, *self.headers.items()]]
        self.began = True
        self._ok = status == httpx.codes.OK
        await put(self._send, {"type": "http.response.start", "status": status, "headers": raw}, self._timeout_s)

    def note(self, done: Done | None) -> None:
        """The timeline as a header of an answer that has not begun."""
        if self._timing and done:
            self.headers[TIMING_HEADER] = msgspec.json.encode(done.timeline).decode("ascii")

    async def comment(self, done: Done | None) -> None:
        """The timeline as a comment between the events of a stream."""
        if self._timing and done:
            await self.part(timing_comment(done))

    async def part(self, data: bytes) -> None:
        """A part of the body."""
        await put(self._send, {"type": "http.response.body", "body": data, "more_body": True}, self._timeout_s)

    async def end(self) -> None:
        """That was all."""
        await put(self._send, {"type": "http.response.body", "body": b"", "more_body": False}, self._timeout_s)
        self.finished_well = self._ok

    async def whole(self, status: int, headers: httpx.Headers, content: bytes) -> None:
        """A whole answer."""
        self.headers["content-length"] = str(len(content))
        await self.start(status, headers)
        await self.part(content)
        await self.end()

    async def all_of(self, response: httpx.Response) -> None:
        """A server's answer as it comes."""
        await self.start(response.status_code, response.headers)
        async for chunk in response.aiter_raw():
            await self.part(chunk)
        await self.end()

    async def fault(self, error: Exception) -> None:
        """An error in a stream that has begun."""
        await self.part(b"data: " + msgspec.json.encode(error_body(error)[1]) + b"\n\n")
        await self.end()
        self.finished_well = False


def _fields(raw: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not a JSON object: {error}", code="invalid_json") from None
    if body.get("kv_transfer_params"):
        raise RequestError("kv_transfer_params are set by this gateway; leave them out", param="kv_transfer_params")
    return body
