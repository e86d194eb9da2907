"""The agents' HTTP client: whatever the pieces in which an answer comes, whole answers or plain errors."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dualpath.bench.client import Answer, Target, complete
from dualpath.core.errors import ServiceError
from dualpath.gateway.main import run_gateway
from dualpath.testing.fake_cluster import BYTES, CACHED_TOKENS, FakeCluster, ids_of

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def tokens(*ids: int) -> bytes:
    return event(choices=[{"text": "", "token_ids": ids, "logit_gaps": [0.5] * len(ids), "index": 0}])


USAGE = event(choices=[], usage={"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 8}})
DONE = b"data: [DONE]\n\n"


def chunked(body: bytes, size: int) -> bytes:
    """The body in chunks of `size` bytes, which need not agree with events."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


def served(raw: bytes, *, max_tokens: int = 3, deadline_s: float = 5, close: bool = True) -> Answer:
    """What the client makes of a server's raw bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        if close:
            writer.close()
        else:
            await reader.read()  # until the client goes

    async def run() -> Answer:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            target = Target("127.0.0.1", server.sockets[0].getsockname()[1], "m", deadline_s)
            return await complete(target, [1, 2], max_tokens)

    return asyncio.run(run())


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_events_are_whole_however_they_are_cut(size: int) -> None:
    answer = served(HEAD + chunked(tokens() + tokens(5) + tokens(6, 7) + USAGE + DONE, size))
    assert (answer.tokens, answer.gaps, answer.cached_tokens) == ([5, 6, 7], [0.5] * 3, 8)
    assert answer.sent_s <= answer.times_s[0] <= answer.times_s[1] == answer.times_s[2]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (HEAD + chunked(tokens(5) + event(error={"message": "engine lost"}), 50), "engine lost"),
        (HEAD + chunked(tokens(5, 6), 50), "ended early"),
        (HEAD + chunked(tokens(5, 6, 7), 50)[:-9], "connection to the cluster broke"),
        (HEAD + chunked(tokens(5, 6) + DONE, 50), "2 tokens came instead of 3"),
        (HEAD + chunked(tokens(5, 6, 7, 8) + DONE, 50), "4 tokens came instead of 3"),
        (HEAD + chunked(b"data: {\n\n", 50), "connection to the cluster broke"),
        (HEAD + b"no number\r\n", "connection to the cluster broke"),
        (b"", "connection to the cluster broke"),
        (b"HTTP/1.1 429 Too Many\r\n\r\n" + b'{"error": {"message": "later"}}', "HTTP 429: later"),
        (b"HTTP/1.1 502 Bad\r\n\r\n<html>", "HTTP 502: <html>"),
    ],
)
def test_every_failure_is_one_plain_error(raw: bytes, message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        served(raw)


def test_silence_ends_at_the_deadline() -> None:
    with pytest.raises(ServiceError, match=r"no whole answer within 0\.2 s"):
        served(HEAD + b"5", deadline_s=0.2, close=False)


def test_nobody_listens() -> None:
    with pytest.raises(ServiceError, match="connection to the cluster broke"):
        asyncio.run(complete(Target("127.0.0.1", 9, "m", 5), [1], 1))


def with_gateway(cluster: FakeCluster, use: Callable[[Target], Awaitable[None]]) -> None:
    async def run() -> None:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(run_gateway(cluster, cluster.spec, port=0, on_listening=port.set_result))
        await use(Target("127.0.0.1", await asyncio.wait_for(port, 10), "fake", 10))
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)

    asyncio.run(run())


def test_the_real_gateway_is_understood(tmp_path: Path) -> None:
    BYTES.save(str(tmp_path / "tokenizer.json"))
    cluster = FakeCluster()
    cluster.spec = msgspec.structs.replace(FakeCluster.spec, path=str(tmp_path))

    async def use(target: Target) -> None:
        answer = await complete(target, ids_of("abc"), 5)
        assert (answer.tokens, answer.gaps, answer.cached_tokens) == (ids_of("Hello"), [0.5] * 5, CACHED_TOKENS)
        [asked] = cluster.submissions
        assert (asked.prompt_tokens, asked.sampling.temperature, asked.sampling.ignore_eos) == (3, 0.0, True)
        with pytest.raises(ServiceError, match=r"HTTP 400: .*at most 900 tokens"):
            await complete(target, [1], 901)

    with_gateway(cluster, use)


def test_vllms_answers_are_understood() -> None:
    top = {"token_id:5": -0.25, "token_id:9": -1.0}
    choice = {"text": "a", "token_ids": [5], "logprobs": {"top_logprobs": [top]}, "index": 0}
    last = event(choices=[], usage={"prompt_tokens": 9, "prompt_tokens_details": None})
    body = event(choices=[choice]) + event(choices=[{"text": "", "token_ids": None}]) + last + DONE
    head = HEAD.replace(b"\r\n\r\n", b"\r\nX-DualPath-Cached-Tokens: 64\r\n\r\n")
    answer = served(head + chunked(body, 64), max_tokens=1)
    assert (answer.tokens, answer.gaps, answer.cached_tokens) == ([5], [0.75], 64)
