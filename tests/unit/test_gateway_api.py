"""The OpenAI endpoints against a fake cluster, in process."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import httpx
import msgspec
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from dualpath.core.errors import RequestError, ServiceError
from dualpath.core.keys import chain_keys, root_key, unpack_tokens
from dualpath.core.layout import BlockLayout
from dualpath.core.model import ModelSpec
from dualpath.core.report import ClusterReport, EngineStats, NodeStats, Role
from dualpath.core.request import Done, FinishReason, Submission, Timeline, Tokens
from dualpath.gateway.app import build_app
from dualpath.gateway.chat_template import ChatTemplate
from dualpath.gateway.serve import Limits
from dualpath.gateway.tokenizer import Tokenizer

LAYOUT = BlockLayout(model="fake", n_layers=2, block_tokens=4, token_bytes=8, dtype="float32")
TIMELINE = Timeline(
    dispatched_ns=10, prefill_side_loaded_ns=30, prefill_started_ns=40, prefill_finished_ns=100,
    decode_started_ns=120, finished_ns=200, prefill_engine="p0/0", decode_engine="d0/0", read_bytes_prefill=64,
)  # fmt: skip
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def byte_tokenizer() -> tokenizers.Tokenizer:
    """One token a byte: token ids are easy to name in tests."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


BYTES = byte_tokenizer()


def ids_of(text: str) -> list[int]:
    return BYTES.encode(text).ids


class FakeCluster:
    """Answers every prompt with `answer`, a token at a time; keeps what it was asked and what was cancelled."""

    spec = ModelSpec(
        name="fake", path="", layout=LAYOUT, n_heads=1, kv_heads=1, head_dim=1, vocab_size=256,
        max_context_tokens=1000, eos_tokens=(),
    )  # fmt: skip
    max_request_tokens = 900

    def __init__(
        self, answer: str = "Hello, wörld", *, error: Exception | None = None, fail_at: int = 0
    ) -> None:
        self.answer, self.error, self.fail_at = answer, error, fail_at
        self.submissions: list[Submission] = []
        self.cancelled: list[str] = []
        self.hang = False
        self.state: ClusterReport | Exception = ClusterReport(ready=True)

    async def submit(self, submission: Submission) -> AsyncIterator[Tokens | Done]:
        self.submissions.append(submission)
        ended = False
        try:
            ids = ids_of(self.answer)[: submission.max_tokens]
            for index, token in enumerate(ids):
                if self.error and index == self.fail_at:
                    raise self.error
                yield Tokens(request=submission.request, index=index, ids=[token], gaps=[0.5])
                await asyncio.sleep(0)
            if self.hang:
                await asyncio.sleep(60)
            ended = True
            reason = FinishReason.LENGTH if len(ids) == submission.max_tokens else FinishReason.STOP
            yield Done(submission.request, reason, len(ids), 8, TIMELINE)
        finally:
            if not ended:
                self.cancelled.append(submission.request)

    async def report(self) -> ClusterReport:
        if isinstance(self.state, Exception):
            raise self.state
        return self.state


def app_of(cluster: FakeCluster, **options: Any) -> Any:
    return build_app(cluster, Tokenizer(BYTES, ChatTemplate(CHATML, {})), **options)


def ask(
    cluster: FakeCluster,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    **options: Any,
) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app_of(cluster, **options))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            content = body if isinstance(body, bytes | None) else json.dumps(body)
            return await http.request(method, path, content=content, headers=headers)

    return asyncio.run(run())


def complete(cluster: FakeCluster, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return ask(
        cluster, "POST", "/v1/completions", {"model": "fake", "prompt": "abcdefghij", **fields}, headers
    )


def chat(cluster: FakeCluster, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "hi"}]
    return ask(cluster, "POST", "/v1/chat/completions", {"model": "fake", "messages": messages, **fields})


def events(response: httpx.Response) -> list[Any]:
    data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert list(body) == ["error"] and set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return body["error"]


def test_completion_has_text_usage_and_the_keys_of_its_blocks() -> None:
    cluster = FakeCluster()
    body = (response := complete(cluster, max_tokens=100, cache_salt="tenant")).json()
    assert body["choices"][0]["text"] == "Hello, wörld" and body["choices"][0]["finish_reason"] == "stop"
    assert body["object"] == "text_completion" and body["id"] == response.headers["x-request-id"]
    assert body["usage"] == {
        "prompt_tokens": 10, "completion_tokens": 13, "total_tokens": 23, "prompt_tokens_details": {"cached_tokens": 8},
    }  # fmt: skip
    sent = cluster.submissions[0]
    root = root_key(LAYOUT, salt=b"tenant")
    assert sent.root == root and list(sent.keys) == chain_keys(root, sent.tokens, 4) and len(sent.keys) == 2
    assert not cluster.cancelled


def test_defaults_are_openais() -> None:
    cluster = FakeCluster("x" * 800)
    assert complete(cluster).json()["choices"][0] == {
        "text": "x" * 16, "index": 0, "finish_reason": "length", "logprobs": None,
    }  # fmt: skip
    assert chat(cluster).json()["usage"]["completion_tokens"] == 512
    assert [s.sampling.temperature for s in cluster.submissions] == [1.0, 1.0]
    assert cluster.submissions[0].sampling.seed != cluster.submissions[1].sampling.seed
    complete(cluster, prompt=[1] * 895)
    assert cluster.submissions[-1].max_tokens == 5


def test_sampling_fields_arrive() -> None:
    cluster = FakeCluster()
    complete(cluster, temperature=0, top_p=0.5, top_k=-1, seed=-1, stop=["a", "b"], ignore_eos=True)
    sampling = cluster.submissions[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.0, 0.5, 0, 2**63 - 1)
    assert sampling.stop == ("a", "b") and sampling.ignore_eos
    complete(cluster, stop="a", max_tokens=None, temperature=None)
    assert (
        cluster.submissions[1].sampling.stop == ("a",) and cluster.submissions[1].sampling.temperature == 1.0
    )


@pytest.mark.parametrize("prompt", ["abc", ["abc"], ids_of("abc"), [ids_of("abc")]])
def test_all_forms_of_one_prompt_are_the_same_tokens(prompt: Any) -> None:
    cluster = FakeCluster()
    assert complete(cluster, prompt=prompt).status_code == 200
    assert unpack_tokens(cluster.submissions[0].tokens) == ids_of("abc")


def test_chat_renders_parts_and_developer_as_system() -> None:
    cluster = FakeCluster()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "d"}, {"role": "user", "content": parts}]
    body = chat(cluster, messages=messages, max_completion_tokens=5).json()
    assert BYTES.decode(unpack_tokens(cluster.submissions[0].tokens)) == "<system>d<user>a\nb<assistant>"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "length" and body["id"].startswith("chatcmpl-")


def test_chat_stream_with_usage() -> None:
    chunks = events(chat(FakeCluster(), stream=True, stream_options={"include_usage": True}))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "Hello, wörld"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop" and chunks[-2]["usage"] is None
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 8
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}


def test_stream_without_usage_has_no_usage_field() -> None:
    chunks = events(complete(FakeCluster(), stream=True))
    assert all("usage" not in chunk for chunk in chunks)
    assert "".join(c["choices"][0]["text"] for c in chunks) == "Hello, wörld"
    assert not any("\ufffd" in c["choices"][0]["text"] for c in chunks)


def test_token_ids_whole_and_streamed() -> None:
    ids = ids_of("Hello, wörld")
    choice = complete(FakeCluster(), return_token_ids=True).json()["choices"][0]
    assert choice["token_ids"] == ids and choice["logit_gaps"] == [0.5] * len(ids)
    assert choice["prompt_token_ids"] == ids_of("abcdefghij")
    chunks = events(complete(FakeCluster(), return_token_ids=True, stream=True))
    assert chunks[0]["choices"][0]["prompt_token_ids"] == ids_of("abcdefghij")
    assert [t for c in chunks for t in c["choices"][0]["token_ids"]] == ids
    body = chat(FakeCluster(), return_token_ids=True).json()
    assert (
        body["prompt_token_ids"] == ids_of("<user>hi<assistant>") and body["choices"][0]["token_ids"] == ids
    )
    first, *rest = events(chat(FakeCluster(), return_token_ids=True, stream=True))
    assert first["prompt_token_ids"] == body["prompt_token_ids"] and "prompt_token_ids" not in rest[0]


def test_stop_string_is_cut_and_never_streamed() -> None:
    cluster = FakeCluster("one END two")
    choice = complete(cluster, stop="END").json()["choices"][0]
    assert choice["text"] == "one " and choice["finish_reason"] == "stop"
    chunks = events(complete(cluster, stop=["END"], stream=True))
    assert [c["choices"][0]["text"] for c in chunks if c["choices"][0]["text"]] == ["o", "n", "e", " "]
    assert complete(FakeCluster("one EN"), stop="END").json()["choices"][0]["text"] == "one EN"


BAD_FIELDS: list[tuple[dict[str, Any], str | None]] = [
    ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": "5"}, "max_tokens"),
    ({"temperature": 2.1}, "temperature"), ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"), ({"top_k": -2}, "top_k"), ({"seed": 2**64}, "seed"), ({"seed": True}, "seed"),
    ({"temprature": 1}, "temprature"), ({"n": 2}, "n"), ({"echo": True}, "echo"), ({"logprobs": 0}, "logprobs"),
    ({"tools": [{}]}, "tools"), ({"logit_bias": {"1": 1}}, "logit_bias"), ({"presence_penalty": 0.1}, "presence_penalty"),
    ({"stop": ["a"] * 17}, "stop"), ({"stop": ""}, "stop"), ({"stop": [1]}, "stop"), ({"best_of": 3}, "best_of"),
    ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"), ({"prompt": None}, "prompt"),
    ({"prompt": ["a", "b"]}, "prompt"), ({"prompt": [[1], [2]]}, "prompt"), ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [256]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": [2**70]}, "prompt"), ({"prompt": 5}, "prompt"),
    ({"stream_options": {"include_usage": True}}, "stream_options"), ({"stream": "yes"}, "stream"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options"), ({"messages": []}, "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_bad_completion_fields_are_named(fields: dict[str, Any], param: str | None) -> None:
    cluster = FakeCluster()
    response = complete(cluster, **fields)
    assert response.status_code == 400 and error_of(response)["param"] == param
    assert error_of(response)["type"] == "invalid_request_error" and not cluster.submissions


BAD_CHATS: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"), ({"messages": [{"role": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"), ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"tool_choice": "required"}, "tool_choice"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, None), ({"prompt": "x"}, "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=lambda value: str(value)[:40])
def test_bad_chat_fields_are_named(fields: dict[str, Any], param: str | None) -> None:
    response = chat(FakeCluster(), **fields)
    assert response.status_code == 400 and error_of(response)["param"] == param


def test_neutral_and_inert_fields_are_accepted() -> None:
    neutral = {
        "n": 1, "logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "auto", "presence_penalty": 0.0,
        "frequency_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"}, "user": "u", "store": True,
        "metadata": {"a": "b"}, "service_tier": "auto", "functions": None, "max_tokens": 3, "max_completion_tokens": 3,
    }  # fmt: skip
    assert chat(FakeCluster(), **neutral).status_code == 200


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"5",
    b"\xff\xfe",
    b'{"model": 1',
    b"[" * 100_000,
    b'{"model":"fake","prompt":"\\ud800"}',
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: str(body[:12]))
def test_malformed_bodies(body: bytes) -> None:
    assert (
        error_of(response := ask(FakeCluster(), "POST", "/v1/completions", body))
        and response.status_code == 400
    )


def test_too_long_too_large_unknown_model_and_unknown_path() -> None:
    response = complete(FakeCluster(), prompt=[1] * 890, max_tokens=20)
    error = error_of(response)
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in ("900", "890", "20"))
    assert error_of(complete(FakeCluster(), prompt=[1] * 900))["code"] == "context_length_exceeded"
    limits = Limits(body_bytes=100)
    response = ask(FakeCluster(), "POST", "/v1/completions", b"x" * 101, limits=limits)
    assert response.status_code == 413 and error_of(response)
    response = complete(FakeCluster(), model="other")
    assert response.status_code == 404 and error_of(response)["code"] == "model_not_found"
    assert ask(FakeCluster(), "GET", "/nowhere").status_code == 404
    assert error_of(ask(FakeCluster(), "GET", "/v1/completions"))["message"].startswith("Method Not Allowed")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [(ServiceError("no engines"), 503), (RequestError("too big"), 400), (ZeroDivisionError("secret"), 500)],
)
def test_errors_of_the_cluster(
    error: Exception, status: int, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
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
    response = ask(cluster, "POST", "/v1/completions", body, limits=Limits(event_timeout_s=0.05))
    assert response.status_code == 503 and len(cluster.cancelled) == 1


def test_timing_header_comment_and_explain() -> None:
    cluster = FakeCluster()

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app_of(cluster)), base_url="http://g"
        ) as http:
            body = {"model": "fake", "prompt": "x"}
            timing = {"x-dualpath-timing": "1"}
            whole = await http.post("/v1/completions", json=body, headers=timing)
            stream = await http.post("/v1/completions", json={**body, "stream": True}, headers=timing)
            found = await http.get(f"/explain/{whole.json()['id']}")
            return [whole, stream, found, await http.get("/explain/nothing"), await http.get("/metrics")]

    whole, stream, found, missing, metrics = asyncio.run(run())
    assert msgspec.json.decode(whole.headers["x-dualpath-timing"], type=Timeline) == TIMELINE
    comment = next(line for line in stream.text.splitlines() if line.startswith(": x-dualpath-timing "))
    assert msgspec.json.decode(comment.split(" ", 2)[2], type=Timeline) == TIMELINE
    assert found.json()["spans"] == {
        "queue_ns": 10, "read_prefill_side_ns": 20, "read_decode_side_ns": None, "wait_for_prefill_ns": 30,
        "prefill_ns": 60, "layer_wait_ns": 0, "handoff_ns": 20, "decode_ns": 80, "total_ns": 200,
    }  # fmt: skip
    assert missing.status_code == 404 and error_of(missing)["code"] == "request_not_found"
    assert 'dualpath_gateway_requests_total{outcome="served"} 2.0' in metrics.text
    assert (
        "dualpath_ttft_seconds_count 2.0" in metrics.text
        and "dualpath_tpot_seconds_count 2.0" in metrics.text
    )


def test_models_health_cluster_metrics() -> None:
    cluster = FakeCluster()
    node = NodeStats("p0", Role.PREFILL, read_bytes=77, lane_bytes={"layers_out": 5})
    engines = [EngineStats("p0/0", Role.PREFILL, steps=3)]
    cluster.state = ClusterReport(
        True, [], [node], engines, decisions={"read:split": 2}, recomputes={"BlockMissing": 1}
    )
    model = ask(cluster, "GET", "/v1/models").json()["data"][0]
    assert model["id"] == "fake" and model["max_model_len"] == 900
    assert ask(cluster, "GET", "/v1/models/fake").json() == model
    assert error_of(ask(cluster, "GET", "/v1/models/a/b"))["code"] == "model_not_found"
    assert ask(cluster, "GET", "/health").json() == {"status": "ready", "missing": []}
    assert msgspec.convert(ask(cluster, "GET", "/cluster").json(), ClusterReport) == cluster.state
    text = ask(cluster, "GET", "/metrics").text
    for line in (
        'dualpath_storage_read_bytes_total{node="p0",role="prefill"} 77.0',
        'dualpath_transferred_bytes_total{lane="layers_out",node="p0"} 5.0',
        'dualpath_engine_steps_total{engine="p0/0",role="prefill"} 3.0',
        'dualpath_decisions_total{choice="split",kind="read"} 2.0',
        'dualpath_recomputes_total{cause="BlockMissing"} 1.0',
        "dualpath_ready 1.0",
    ):
        assert line in text


def test_not_ready_and_no_scheduler() -> None:
    cluster = FakeCluster()
    cluster.state = ClusterReport(missing=["no decode engine"])
    response = ask(cluster, "GET", "/health")
    assert response.status_code == 503 and response.json()["missing"] == ["no decode engine"]
    cluster.state = ServiceError("the scheduler does not answer")
    assert ask(cluster, "GET", "/health").json()["missing"] == ["the scheduler does not answer"]
    assert "dualpath_ready 0.0" in ask(cluster, "GET", "/metrics").text
    assert ask(cluster, "GET", "/cluster").status_code == 503


def test_api_key() -> None:
    def status(path: str, key: str | None) -> int:
        headers = {"authorization": key} if key else None
        return ask(FakeCluster(), "GET", path, headers=headers, api_key="sesam").status_code

    assert status("/v1/models", None) == status("/metrics", "Bearer sesamX") == 401
    assert status("/v1/models", "Bearer sesam") == status("/health", None) == 200


Client = Callable[[], Awaitable[dict[str, Any]]]


async def drive(app: Any, body: dict[str, Any], leave: asyncio.Event, sent: list[dict[str, Any]]) -> None:
    """One ASGI request whose client leaves when `leave` is set."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/completions",
        "raw_path": b"", "query_string": b"", "headers": [], "scheme": "http", "server": ("g", 80), "root_path": "",
    }  # fmt: skip
    messages: Iterable[dict[str, Any]] = iter([{"type": "http.request", "body": json.dumps(body).encode()}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request_and_frees_its_place(stream: bool) -> None:
    cluster = FakeCluster()
    cluster.hang = True

    async def run() -> None:
        app = app_of(cluster, limits=Limits(concurrent_requests=1))
        leave, sent, body = asyncio.Event(), [], {"model": "fake", "prompt": "x", "stream": stream}
        task = asyncio.create_task(drive(app, body, leave, sent))
        while not cluster.submissions:
            await asyncio.sleep(0.001)
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
