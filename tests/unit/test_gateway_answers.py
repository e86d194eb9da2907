"""Answers of the OpenAI endpoints against a fake cluster: whole, streamed, with token ids."""

import json
from typing import Any

import httpx
import pytest

from dualpath.core.keys import chain_keys, root_key, unpack_tokens
from dualpath.gateway.app import build_app
from dualpath.gateway.chat_template import ChatTemplate
from dualpath.gateway.tokenizer import Tokenizer
from dualpath.testing.fake_cluster import BYTES, CHATML, FakeCluster, ask, ids_of


def app_of(cluster: FakeCluster, **options: Any) -> Any:
    return build_app(cluster, Tokenizer(BYTES, ChatTemplate(CHATML, {})), **options)


def complete(cluster: FakeCluster, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"model": "fake", "prompt": "abcdefghij", **fields}
    return ask(app_of(cluster), "POST", "/v1/completions", body, headers)


def chat(cluster: FakeCluster, **fields: Any) -> httpx.Response:
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **fields}
    return ask(app_of(cluster), "POST", "/v1/chat/completions", body)


def events(response: httpx.Response) -> list[Any]:
    data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


def test_completion_has_text_usage_and_the_keys_of_its_blocks() -> None:
    cluster = FakeCluster()
    body = (response := complete(cluster, max_tokens=100, cache_salt="tenant")).json()
    assert body["choices"][0]["text"] == "Hello, wörld" and body["choices"][0]["finish_reason"] == "stop"
    assert body["object"] == "text_completion" and body["id"] == response.headers["x-request-id"]
    assert body["usage"] == {
        "prompt_tokens": 10, "completion_tokens": 13, "total_tokens": 23,
        "prompt_tokens_details": {"cached_tokens": 8},
    }  # fmt: skip
    sent = cluster.submissions[0]
    root = root_key(FakeCluster.spec.layout, salt=b"tenant")
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
    assert cluster.submissions[1].sampling.stop == ("a",) and cluster.submissions[1].sampling.temperature == 1.0


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
    assert body["prompt_token_ids"] == ids_of("<user>hi<assistant>") and body["choices"][0]["token_ids"] == ids
    first, *rest = events(chat(FakeCluster(), return_token_ids=True, stream=True))
    assert first["prompt_token_ids"] == body["prompt_token_ids"] and "prompt_token_ids" not in rest[0]


def test_stop_string_is_cut_and_never_streamed() -> None:
    cluster = FakeCluster("one END two")
    choice = complete(cluster, stop="END").json()["choices"][0]
    assert choice["text"] == "one " and choice["finish_reason"] == "stop"
    chunks = events(complete(cluster, stop=["END"], stream=True))
    assert [c["choices"][0]["text"] for c in chunks if c["choices"][0]["text"]] == ["o", "n", "e", " "]
    assert complete(FakeCluster("one EN"), stop="END").json()["choices"][0]["text"] == "one EN"
