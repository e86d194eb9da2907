"""The gateway's calls to servers of their own: what a dead one costs."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from dualpath.core.errors import ServiceError
from dualpath.gateway import servers as module
from dualpath.gateway.servers import Refusal, Rendered, Servers

BODY = {"model": "m", "prompt": "x"}


def render(
    urls: list[list[str]], answer: Callable[[httpx.Request], httpx.Response], patience_s: float = 5.0
) -> list[Rendered]:
    """Render once; `urls` are those of each look, the last ones for ever."""

    async def ask() -> list[Rendered]:
        made = Servers(lambda: urls.pop(0) if len(urls) > 1 else urls[0], None, patience_s)
        await made.close()
        made.http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        try:
            return await made.render("/v1/completions", BODY)
        finally:
            await made.close()

    return asyncio.run(ask())


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)


def test_a_dead_server_and_then_none_cost_time_only() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.host == "dead":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=[{"token_ids": [1, 2]}])

    assert render([["http://dead"], [], ["http://alive"]], answer)[0].token_ids == [1, 2]
    assert asked == ["dead", "alive"]


def test_patience_ends_with_the_mend() -> None:
    with pytest.raises(ServiceError, match=r"no decode server answers.*try again"):
        render([[]], lambda request: httpx.Response(500), patience_s=0.05)


def test_a_refusal_is_final() -> None:
    with pytest.raises(Refusal):
        render([["http://alive"]], lambda request: httpx.Response(404))
    with pytest.raises(ServiceError, match="--enable-scale-out"):
        render([["http://alive"]], lambda request: httpx.Response(403, text="needs --enable-scale-out"))
