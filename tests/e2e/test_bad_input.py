"""Requests of all kinds against one running cluster: wrong ones are refused in plain words, and nothing leaks."""

import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dualpath.core.report import ClusterReport
from dualpath.launch.local import LocalCluster
from e2e.live_cluster import (
    Ask,
    ask_all,
    assert_equal_tokens,
    cluster,
    cluster_report,
    random_asks,
    wait_durable,
)

Reference = Callable[[Path, Sequence[Ask]], list[list[int]]]
KV_TOKENS = 3072  # of the decode engine: less than the arenas and the window hold
BLOCK = 64


@pytest.fixture(scope="module")
def running(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    store = tmp_path_factory.mktemp("store")
    with cluster(tiny, store, scheduling={"kv_tokens": KV_TOKENS}) as started:
        yield started


@pytest.fixture
def url(running: LocalCluster) -> Iterator[str]:
    """Every test leaves the cluster idle: no request, no slot, no load."""
    yield running.url
    wait_idle(running.url)


def wait_idle(url: str) -> ClusterReport:
    for _ in range(200):
        report = cluster_report(url)
        requests = report.running_requests + report.waiting_requests + report.pending_writes
        slots = sum(n.arena_slots_used + n.read_queue_blocks + n.write_queue_blocks for n in report.nodes)
        loads = sum(e.requests + e.tokens for e in report.engines)
        caches = sum(e.kv_memory_bytes for e in report.engines if e.role == "decode")
        if report.ready and not (requests or slots or loads or caches):
            return report
        time.sleep(0.05)
    raise AssertionError(f"something of a request is left: {report}")


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "Hello", "max_tokens": 4, "temperature": 0, **fields}


def post(url: str, path: str = "completions", **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/{path}", json=body(**fields), timeout=60)


def check_refusal(answer: httpx.Response, status: int, param: str | None, words: str) -> None:
    """OpenAI's error shape, the wrong parameter's name, and words that help."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status != 429 else "rate_limit_error")
    assert error["param"] == param
    assert words in error["message"]
    assert "Traceback" not in answer.text


CHAT = [{"role": "user", "content": "hi"}]
WRONG: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"model": "gpt-4"}, 404, "model", "this server has 'tiny'"),
    ({"model": 7}, 400, "model", "Expected `str`"),
    ({"model": None}, 400, "model", "missing required field"),
    ({"prompt": None}, 400, "prompt", "missing required field"),
    ({"prompt": ""}, 400, "prompt", "empty"),
    ({"prompt": []}, 400, "prompt", "empty"),
    ({"prompt": [1.5]}, 400, "prompt", "token ids"),
    ({"prompt": [5, -1]}, 400, "prompt", "from 0 to 511"),
    ({"prompt": [5, 512]}, 400, "prompt", "from 0 to 511"),
    ({"prompt": [2**70]}, 400, "prompt", ""),
    ({"prompt": ["a", "b"]}, 400, "prompt", "only one prompt"),
    ({"prompt": {"text": "a"}}, 400, "prompt", "Expected"),
    ({"max_tokens": -1}, 400, "max_tokens", ">= 1"),
    ({"max_tokens": 0}, 400, "max_tokens", ">= 1"),
    ({"max_tokens": 1.5}, 400, "max_tokens", "Expected `int"),
    ({"max_tokens": 10**30}, 400, "max_tokens", ""),
    ({"max_tokens": KV_TOKENS}, 400, "prompt", f"at most {KV_TOKENS} tokens"),
    ({"prompt": [40] * KV_TOKENS}, 400, "prompt", f"yours has {KV_TOKENS} in the prompt"),
    ({"prompt": [40] * 200_000}, 400, "prompt", "shorten the prompt"),
    ({"temperature": -0.1}, 400, "temperature", ">= 0"),
    ({"temperature": "hot"}, 400, "temperature", "Expected `float"),
    ({"top_p": 0}, 400, "top_p", "> 0"),
    ({"top_k": -2}, 400, "top_k", ">= -1"),
    ({"seed": "x"}, 400, "seed", "Expected `int"),
    ({"stop": [""]}, 400, "stop", "length >= 1"),
    ({"stop": ["x"] * 17}, 400, "stop", "length <= 16"),
    ({"stream": "yes"}, 400, "stream", "Expected `bool`"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "needs stream: true"),
    ({"n": 2}, 400, "n", "not supported"),
    ({"logprobs": 5}, 400, "logprobs", "not supported"),
    ({"max_token": 5}, 400, "max_token", "unknown field"),
    ({"messages": CHAT}, 400, "messages", "unknown field"),
]
WRONG_CHATS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": []}, "messages", "length >= 1"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "robot"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages", ""),
    ({"messages": CHAT, "max_completion_tokens": -5}, "max_completion_tokens", ">= 1"),
    ({"messages": CHAT, "tools": [{"type": "function"}]}, "tools", "not supported"),
    ({"messages": CHAT, "response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"messages": [{"role": "user", "content": "x" * KV_TOKENS}]}, "messages", f"at most {KV_TOKENS} tokens"),
]
MALFORMED = [b"", b"{", b'"text"', b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b'{"model": NaN}', b'{"a": 1} trailing']


@pytest.mark.parametrize(("fields", "status", "param", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_values_are_refused(
    running: LocalCluster, fields: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    start = time.monotonic()
    check_refusal(post(running.url, **fields), status, param, words)
    assert time.monotonic() - start < 5, "not at once"


@pytest.mark.parametrize(("fields", "param", "words"), WRONG_CHATS, ids=lambda value: str(value)[:40])
def test_wrong_chats_are_refused(running: LocalCluster, fields: dict[str, Any], param: str | None, words: str) -> None:
    chat = {"model": "tiny", **fields}
    check_refusal(httpx.post(f"{running.url}/v1/chat/completions", json=chat, timeout=60), 400, param, words)


def test_what_is_no_request_at_all_is_refused(running: LocalCluster) -> None:
    address = f"{running.url}/v1/completions"
    for data in MALFORMED:
        check_refusal(httpx.post(address, content=data), 400, None, "not a JSON object")
    check_refusal(httpx.post(address, content=b"x" * (16 * 2**20 + 1), timeout=30), 413, None, "shorten the prompt")
    check_refusal(httpx.get(address), 405, None, "GET /v1/completions")
    check_refusal(httpx.get(f"{running.url}/v1/nothing"), 404, None, "/v1/nothing")
    check_refusal(httpx.get(f"{running.url}/v1/models/gpt-4"), 404, "model", "'tiny'")
    check_refusal(httpx.get(f"{running.url}/explain/none"), 404, "id", "no such request")


def test_broken_connections_do_no_harm(running: LocalCluster, url: str) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    for data in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", head + b'{"model"'):
        with socket.create_connection(("127.0.0.1", running.config.network.port), timeout=5) as connection:
            connection.sendall(data)
    assert post(url).status_code == 200


def test_after_all_this_the_cluster_is_idle_and_gives_right_tokens(url: str, tiny: Path, reference: Reference) -> None:
    asks = random_asks(31, 4, tokens=20)
    assert_equal_tokens(ask_all(url, asks), reference(tiny, asks))
    report = wait_idle(url)
    assert report.failed_requests == 0 and not report.recomputes


def test_short_prompts_whole_blocks_and_single_tokens(url: str, tiny: Path, reference: Reference) -> None:
    rng = random.Random(32)
    prompt = [rng.randrange(32, 250) for _ in range(3 * BLOCK)]
    longest = KV_TOKENS - 1
    asks = [
        *(Ask(prompt[:length], 3) for length in (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK)),
        *(Ask(prompt[:length], 1) for length in (1, BLOCK, 3 * BLOCK)),
        Ask([rng.randrange(32, 250) for _ in range(longest)], 1),
        Ask(prompt[:1], 2 * BLOCK),
    ]
    expected = reference(tiny, asks)
    assert_equal_tokens(ask_all(url, asks), expected)
    wait_durable(url)
    again = ask_all(url, asks)
    assert_equal_tokens(again, expected)
    assert [a.cached for a in again] == [(len(ask.prompt) - 1) // BLOCK * BLOCK for ask in asks]


def test_forty_clients_at_once(url: str, tiny: Path, reference: Reference) -> None:
    asks = random_asks(33, 40, longest=300, tokens=24)
    assert_equal_tokens(ask_all(url, asks), reference(tiny, asks))


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_client_that_leaves_in_mid_stream_frees_its_work(url: str, path: str) -> None:
    finished = cluster_report(url).finished_requests
    prompt = {"prompt": "x" * 500} if path == "completions" else {"messages": CHAT}
    ask = {"model": "tiny", "max_tokens": 2000, "ignore_eos": True, "stream": True, **prompt}
    with httpx.stream("POST", f"{url}/v1/{path}", json=ask, timeout=30) as answer:
        lines = answer.iter_lines()
        for _ in range(8):
            next(lines)
        assert cluster_report(url).running_requests == 1
    start = time.monotonic()
    assert wait_idle(url).finished_requests == finished
    assert time.monotonic() - start < 5


def test_clients_that_leave_at_any_moment_free_their_work(url: str) -> None:
    """Also while they wait, while hits are read, and while the prompt is prefilled."""
    prompts = [[40 + i] * 1500 for i in range(3)]
    ask_all(url, [Ask(prompt, 1) for prompt in prompts])
    wait_durable(url)

    async def leave(client: httpx.AsyncClient, number: int) -> None:
        ask = body(prompt=prompts[number % 3] + [40] * 500, max_tokens=900, ignore_eos=True, stream=number % 2 == 0)
        try:
            async with asyncio.timeout(0.02 * number):
                await client.post(f"{url}/v1/completions", json=ask)
        except TimeoutError:
            return

    async def everyone() -> None:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=60) as client:
            await asyncio.gather(*(leave(client, number) for number in range(30)))

    asyncio.run(everyone())
    wait_idle(url)
    assert post(url).status_code == 200


def test_stop_strings_cut_the_text(url: str) -> None:
    plain = post(url, prompt="Tell me", max_tokens=60, ignore_eos=True).json()["choices"][0]["text"]
    stop = plain[20:23]
    cut = plain[: plain.index(stop)]
    answer = post(url, prompt="Tell me", max_tokens=60, ignore_eos=True, stop=["\x00", stop]).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (cut, "stop")
    assert len(cut) < answer["usage"]["completion_tokens"] < 60, "the engine did not stop"


def test_sampling_repeats_itself_with_a_seed_alone(url: str) -> None:
    def ids(seed: int | None) -> list[int]:
        sampled = {"temperature": 1.5, "max_tokens": 30, "ignore_eos": True, "return_token_ids": True, "seed": seed}
        return list(post(url, **sampled).json()["choices"][0]["token_ids"])

    assert ids(1) == ids(1) != ids(2)
    assert ids(None) != ids(None)


def test_streaming_chat_with_the_official_client(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    messages: list[Any] = [{"role": "system", "content": "Be brief. " * 30}, {"role": "user", "content": "What?"}]
    chat: dict[str, Any] = {"model": "tiny", "messages": messages, "temperature": 0, "max_completion_tokens": 40}
    whole = client.chat.completions.create(**chat)
    wait_durable(url)
    chunks = list(client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 10, "not streamed"
    assert whole.usage and chunks[-1].usage and chunks[-1].usage.prompt_tokens_details
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    cached = chunks[-1].usage.prompt_tokens_details.cached_tokens
    assert cached == (whole.usage.prompt_tokens - 1) // BLOCK * BLOCK > 0
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client.chat.completions.create(**{**chat, "model": "gpt-4"})


def samples(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics", timeout=10).text.splitlines()
    return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))}


def corrupt_everything(store: Path) -> None:
    for path in store.glob("*/??/*"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


def test_metrics_tell_what_was_done(running: LocalCluster, url: str) -> None:
    """Reads by both sides, lanes, engines, decisions, latencies; and a corrupt block, for a recompute."""
    asks = random_asks(34, 3)
    ask_all(url, asks)
    wait_durable(url)
    ask_all(url, asks)
    corrupt_everything(Path(running.config.storage.path))
    ask_all(url, asks)
    wait_idle(url)
    time.sleep(2 * running.config.limits.heartbeat_s)  # counters come with the heartbeat
    found = samples(url)
    for node, role in (("p0", "prefill"), ("d0", "decode")):
        label = f'{{node="{node}",role="{role}"}}'
        assert found[f"dualpath_storage_read_bytes_total{label}"] > 0
        assert found[f"dualpath_arena_slots{label}"] > found[f"dualpath_arena_slots_used{label}"] == 0
        assert found[f"dualpath_read_queue_blocks{label}"] == 0
        engine = f'{{engine="{node}/0",role="{role}"}}'
        assert found[f"dualpath_engine_generated_tokens_total{engine}"] > 0
        assert (
            found[f"dualpath_engine_step_requests_total{engine}"] >= found[f"dualpath_engine_steps_total{engine}"] > 0
        )
    assert found['dualpath_engine_prompt_tokens_total{engine="p0/0",role="prefill"}'] > 0
    assert found['dualpath_storage_written_bytes_total{node="d0",role="decode"}'] > 0
    moved = [value for name, value in found.items() if name.startswith("dualpath_transferred_bytes_total")]
    assert len(moved) == 8 and sum(value > 0 for value in moved) >= 6, found
    kinds = {name.split('kind="')[1].split('"')[0] for name in found if name.startswith("dualpath_decisions_total")}
    assert kinds == {"prefill", "decode", "read"}
    assert found['dualpath_recomputes_total{cause="corrupt block"}'] > 0
    for latency in ("ttft", "ttst", "tpot", "e2e"):
        assert found[f"dualpath_{latency}_seconds_count"] > 0 and found[f"dualpath_{latency}_seconds_sum"] > 0
    assert found['dualpath_gateway_requests_total{outcome="refused"}'] > 0
    assert found['dualpath_gateway_requests_total{outcome="cancelled"}'] > 0


def test_explain_says_where_the_time_went(url: str) -> None:
    ask = body(prompt="y" * 300, max_tokens=5, ignore_eos=True)
    answer = httpx.post(f"{url}/v1/completions", json=ask, headers={"x-dualpath-timing": "1"}, timeout=60)
    timeline = json.loads(answer.headers["x-dualpath-timing"])
    assert 0 <= timeline["dispatched_ns"] < timeline["prefill_finished_ns"] < timeline["finished_ns"]
    command = [sys.executable, "-m", "dualpath", "explain", answer.headers["x-request-id"], "--url", url]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert "300 prompt tokens (0 cached), 5 generated, ended by length" in " ".join(shown.split())
    for span in (
        "queue",
        "read prefill side",
        "wait for prefill",
        "prefill",
        "layer wait",
        "handoff",
        "decode",
        "total",
    ):
        assert span in shown
    assert "prefill on p0/0, decode on d0/0" in shown
