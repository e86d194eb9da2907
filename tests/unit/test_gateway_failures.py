"""What clients get when the cluster fails, and what the cluster gets when clients leave."""

import asyncio
import json
import logging
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from dualpath.core.errors import RequestError, ServiceError
from dualpath.gateway.app import build_app
from dualpath.gateway.chat_template import ChatTemplate
from dualpath.gateway.desk import Limits
from dualpath.gateway.tokenizer import Tokenizer
from dualpath.testing.fake_cluster import BYTES, CHATML, FakeCluster, ask, error_of


def app_of(cluster: FakeCluster, **options: Any) -> Any:
    return build_app(cluster, Tokenizer(BYTES, ChatTemplate(CHATML, {})), **options)


def complete(cluster: FakeCluster, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"model": "fake", "prompt": "abcdefghij", **fields}
    return ask(app_of(cluster), "POST", "/v1/completions", body, headers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [(ServiceError("no engines"), 503), (RequestError("too big"), 400), (ZeroDivisionError("secret"), 500)],
)
def test_errors_of_the_cluster(error: Exception, status: int, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL):
        response = complete(FakeCluster(error=error), stream=stream)
    assert response.status_code == status and error_of(response)
    assert "secret" not in response.text and ("retry-after" in response.headers) == (status == 503)


def test_error_within_a_stream_is_its_last_event() -> None:
    response = complete(FakeCluster(error=ServiceError("lost d0"), fail_at=3), stream=True)
    assert response.status_code == 200 and "[DONE]" not in response.text
    last = json.loads(response.text.strip().splitlines()[-1][6:])
    assert last["error"]["message"] == "lost d0" and last["error"]["code"] == "service_unavailable"


def test_a_silent_cluster_is_given_up() -> None:
    cluster = FakeCluster()
    cluster.hang = True
    body = {"model": "fake", "prompt": "x"}
    response = ask(app_of(cluster, limits=Limits(event_timeout_s=0.05)), "POST", "/v1/completions", body)
    assert response.status_code == 503 and len(cluster.cancelled) == 1


async def nowhere(message: Any) -> None:
    pass


async def drive(app: Any, body: dict[str, Any], leave: asyncio.Event, send: Any) -> None:
    """One ASGI request whose client leaves when `leave` is set."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"", "query_string": b"", "headers": [], "scheme": "http", "server": ("g", 80),
        "root_path": "",
    }  # fmt: skip
    messages: Iterable[dict[str, Any]] = iter([{"type": "http.request", "body": json.dumps(body).encode()}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await leave.wait()
        return {"type": "http.disconnect"}

    await app(scope, receive, send)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request_and_frees_its_place(stream: bool) -> None:
    cluster = FakeCluster()
    cluster.hang = True

    async def run() -> None:
        app = app_of(cluster, limits=Limits(max_concurrent_requests=1))
        leave, body = asyncio.Event(), {"model": "fake", "prompt": "x", "stream": stream}
        task = asyncio.create_task(drive(app, body, leave, nowhere))
        await asyncio.wait_for(cluster.submitted.wait(), 2)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://g") as http:
            refused = await http.post("/v1/completions", json=body)
            assert refused.status_code == 429 and refused.headers["retry-after"] and error_of(refused)
            leave.set()
            await asyncio.wait_for(task, 2)
            assert len(cluster.cancelled) == 1
            cluster.hang = False
            assert (await http.post("/v1/completions", json=body)).status_code == 200

    asyncio.run(run())


def test_a_client_that_reads_nothing_is_given_up() -> None:
    cluster = FakeCluster()

    async def run() -> None:
        stuck = asyncio.Event()

        async def send(message: Any) -> None:
            await stuck.wait()

        app = app_of(cluster, limits=Limits(send_timeout_s=0.05))
        body = {"model": "fake", "prompt": "x", "stream": True}
        await asyncio.wait_for(drive(app, body, asyncio.Event(), send), 2)

    asyncio.run(run())
    assert len(cluster.cancelled) == 1
