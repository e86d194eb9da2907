"""HTTP to the engines that are servers of their own: rendering of prompts, calls, and what is merely passed on."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from dualpath.core.errors import ServiceError

log = logging.getLogger("dualpath.gateway")
CONNECT_S = 5.0
RETRY_S = 0.5
RENDERABLE = ("/v1/completions", "/v1/chat/completions")


class Features(msgspec.Struct):
    """Where the placeholders of images and their kin lie in the prompt, and what fills them."""

    mm_hashes: dict[str, list[str]]
    mm_placeholders: dict[str, list[dict[str, int]]]

    def fillings(self) -> list[tuple[int, int, str]]:
        """(first token, tokens, hash) of each."""
        return [
            (place["offset"], place["length"], name)
            for kind, names in self.mm_hashes.items()
            for name, place in zip(names, self.mm_placeholders[kind], strict=True)
        ]


class _Sampling(msgspec.Struct):
    max_tokens: int | None = None


class Rendered(msgspec.Struct):
    """A prompt as the engines will see it."""

    token_ids: list[int]
    model: str | None = None
    features: Features | None = None
    sampling_params: _Sampling = msgspec.field(default_factory=_Sampling)


class Refusal(Exception):
    """A server's own answer to a request that it does not serve, for the client as it is."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"HTTP {response.status_code}")
        self.response = response


class Servers:
    """The decode engines' servers; `urls` tells the ones of now."""

    def __init__(self, urls: Callable[[], list[str]], api_key: str | None, timeout_s: float) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        headers = {"accept-encoding": "identity"}  # bodies are passed on as they are
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        self.http = httpx.AsyncClient(limits=limits, timeout=timeout, headers=headers, trust_env=False)
        self._patience_s = timeout_s
        self._urls = urls
        self._turns = itertools.count()

    def any(self) -> str:
        """One of the decode servers, in turn; ServiceError when there is none."""
        urls = self._urls()
        if not urls:
            raise ServiceError("no decode server has joined yet; try again later")
        return urls[next(self._turns) % len(urls)]

    async def render(self, path: str, body: Mapping[str, Any]) -> list[Rendered]:
        """The prompts of a request to `path`. Refusal when the server does not take it."""
        response = await self._rendering(path, msgspec.json.encode(body))
        if response.status_code == httpx.codes.FORBIDDEN and b"scale-out" in response.content:
            raise ServiceError("the vLLM servers do not render prompts; start them with --enable-scale-out")
        if response.status_code != httpx.codes.OK:
            raise Refusal(response)
        kind = list[Rendered] if path == "/v1/completions" else Rendered
        found: Any = msgspec.json.decode(response.content, type=kind)
        return found if isinstance(found, list) else [found]

    async def _rendering(self, path: str, body: bytes) -> httpx.Response:
        """Of whichever server answers: one that has just died, or is not back yet, costs time only."""
        deadline_s = time.monotonic() + self._patience_s
        while True:
            try:
                return await self.http.post(f"{self.any()}{path}/render", content=body, headers=JSON)
            except (httpx.TransportError, ServiceError) as error:
                if time.monotonic() > deadline_s:
                    raise ServiceError(f"no decode server answers: {error or repr(error)}; try again later") from None
                log.warning("no prompt rendered, trying again: %s", error or repr(error))
            await asyncio.sleep(RETRY_S)

    @asynccontextmanager
    async def call(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncGenerator[httpx.Response, None]:
        """An answer whose body is still to be read."""
        async with self.http.stream(method, url, content=body, headers=dict(headers)) as response:
            yield response

    async def close(self) -> None:
        """Close all connections."""
        await self.http.aclose()


JSON = {"content-type": "application/json"}
