"""The gateway as a real server on loopback, used through the official client."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest

from dualpath.core.errors import ConfigError, ServiceError
from dualpath.gateway.desk import Limits
from dualpath.gateway.main import is_loopback, run_gateway
from dualpath.testing.fake_cluster import BYTES, CACHED_TOKENS, CHATML, FakeCluster, ids_of

KEY = "sesam"
HELLO: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def cluster(tmp_path: Path) -> FakeCluster:
    BYTES.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    fake = FakeCluster()
    fake.spec = msgspec.structs.replace(FakeCluster.spec, path=str(tmp_path))
    return fake


def with_server(
    cluster: FakeCluster, use: Callable[[openai.AsyncOpenAI], Awaitable[None]], limits: Limits | None = None
) -> None:
    """Run `use` against a gateway on a free loopback port; the server must end when cancelled."""

    async def run() -> None:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = run_gateway(cluster, cluster.spec, port=0, api_key=KEY, limits=limits, on_listening=port.set_result)
        server = asyncio.create_task(serving)
        url = f"http://127.0.0.1:{await asyncio.wait_for(port, 10)}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=20) as client:
            await use(client)
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(server, 10)

    asyncio.run(run())


def test_chat_completion_models(cluster: FakeCluster) -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        assert [model.id async for model in client.models.list()] == ["fake"]
        assert (await client.models.retrieve("fake")).id == "fake"
        answer = await client.chat.completions.create(model="fake", messages=HELLO)
        assert answer.choices[0].message.content == "Hello, wörld" and answer.choices[0].finish_reason == "stop"
        assert answer.usage and answer.usage.prompt_tokens_details
        assert answer.usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS
        assert answer._request_id == answer.id
        extra = {"return_token_ids": True, "ignore_eos": True}
        text = await client.completions.create(model="fake", prompt=ids_of("abc"), max_tokens=5, extra_body=extra)
        assert text.choices[0].text == "Hello" and text.choices[0].finish_reason == "length"
        assert text.choices[0].model_extra and text.choices[0].model_extra["token_ids"] == ids_of("Hello")

    with_server(cluster, use)


def test_streams(cluster: FakeCluster) -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        usage = {"include_usage": True}
        timing = {"x-dualpath-timing": "1"}
        stream = await client.chat.completions.create(
            model="fake", messages=HELLO, stream=True, stream_options=usage, extra_headers=timing
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "Hello, wörld" and chunks[-1].usage and chunks[-1].usage.completion_tokens == 13
        parts = [part async for part in await client.completions.create(model="fake", prompt="x", stream=True)]
        assert "".join(part.choices[0].text for part in parts) == "Hello, wörld"

    with_server(cluster, use)


def test_errors_are_the_clients_exceptions(cluster: FakeCluster) -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="other", messages=HELLO)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="fake", messages=HELLO, n=2)
        assert bad.value.param == "n"
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").models.list()
        cluster.error = ServiceError("lost d0")
        with pytest.raises(openai.InternalServerError, match="lost d0"):
            await client.completions.create(model="fake", prompt="x")
        cluster.fail_at = 3
        with pytest.raises(openai.APIError, match="lost d0"):
            async for _ in await client.completions.create(model="fake", prompt="x", stream=True):
                pass

    with_server(cluster, use)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request(cluster: FakeCluster, stream: bool) -> None:
    cluster.hang = True

    async def use(client: openai.AsyncOpenAI) -> None:
        async def consume() -> None:
            answer = await client.completions.create(model="fake", prompt="x", stream=stream)
            async for _ in answer:
                pass

        task = asyncio.create_task(consume())
        await asyncio.wait_for(cluster.submitted.wait(), 5)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(100):
            if cluster.cancelled:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the request was not cancelled")

    with_server(cluster, use)


def test_a_busy_port_and_an_open_host_are_config_errors(cluster: FakeCluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="in use"):
            asyncio.run(run_gateway(cluster, cluster.spec, port=port))
    with pytest.raises(ConfigError, match="API key"):
        asyncio.run(run_gateway(cluster, cluster.spec, "0.0.0.0", 0))
    with pytest.raises(ConfigError, match="65535"):
        asyncio.run(run_gateway(cluster, cluster.spec, port=70000))
    assert is_loopback("::1") and is_loopback("localhost") and not is_loopback("example")


def test_no_thread_or_socket_is_left(cluster: FakeCluster) -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        await client.completions.create(model="fake", prompt="x")
        url = str(client.base_url).removesuffix("v1/")
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(url + "health")).status_code == 200
            assert (await http.get(url + "metrics")).status_code == 401

    with_server(cluster, use)


SCRIPT = """
import asyncio, msgspec, sys
from dualpath.gateway.main import run_gateway
from dualpath.testing.fake_cluster import FakeCluster
cluster = FakeCluster()
spec = msgspec.structs.replace(cluster.spec, path=sys.argv[1])
asyncio.run(run_gateway(cluster, spec, port=0, on_listening=lambda port: print(port, flush=True)))
print("clean", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(cluster: FakeCluster, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SCRIPT, cluster.spec.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        url = f"http://127.0.0.1:{port}/health"
        assert httpx.get(url, timeout=10, trust_env=False).json()["status"] == "ready"
        process.send_signal(number)
        assert process.communicate(timeout=15)[0] == "clean\n" and process.returncode == 0
