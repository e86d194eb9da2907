"""Requests that the gateway refuses, by name of the wrong parameter; and those it accepts."""

from typing import Any

import httpx
import pytest

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


def chat(cluster: FakeCluster, **fields: Any) -> httpx.Response:
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **fields}
    return ask(app_of(cluster), "POST", "/v1/chat/completions", body)


BAD_FIELDS: list[tuple[dict[str, Any], str | None]] = [
    ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"temperature": 2.1}, "temperature"), ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"), ({"top_k": -2}, "top_k"), ({"seed": 2**64}, "seed"), ({"seed": True}, "seed"),
    ({"temprature": 1}, "temprature"), ({"n": 2}, "n"), ({"echo": True}, "echo"),
    ({"logprobs": 0}, "logprobs"),
    ({"tools": [{}]}, "tools"), ({"logit_bias": {"1": 1}}, "logit_bias"),
    ({"presence_penalty": 0.1}, "presence_penalty"),
    ({"stop": ["a"] * 17}, "stop"), ({"stop": ""}, "stop"), ({"stop": [1]}, "stop"),
    ({"best_of": 3}, "best_of"),
    ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ["a", "b"]}, "prompt"), ({"prompt": [[1], [2]]}, "prompt"), ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [256]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": [2**70]}, "prompt"),
    ({"prompt": 5}, "prompt"),
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
    ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"), ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, None), ({"prompt": "x"}, "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=lambda value: str(value)[:40])
def test_bad_chat_fields_are_named(fields: dict[str, Any], param: str | None) -> None:
    response = chat(FakeCluster(), **fields)
    assert response.status_code == 400 and error_of(response)["param"] == param


def test_neutral_and_inert_fields_are_accepted() -> None:
    neutral = {
        "n": 1, "logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "auto",
        "presence_penalty": 0.0,
        "frequency_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"}, "user": "u",
        "store": True,
        "metadata": {"a": "b"}, "service_tier": "auto", "functions": None, "max_tokens": 3,
        "max_completion_tokens": 3,
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
        error_of(response := ask(app_of(FakeCluster()), "POST", "/v1/completions", body))
        and response.status_code == 400
    )


def test_too_long_too_large_unknown_model_and_unknown_path() -> None:
    response = complete(FakeCluster(), prompt=[1] * 890, max_tokens=20)
    error = error_of(response)
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in ("900", "890", "20"))
    assert error_of(complete(FakeCluster(), prompt=[1] * 900))["code"] == "context_length_exceeded"
    limits = Limits(body_bytes=100)
    response = ask(app_of(FakeCluster(), limits=limits), "POST", "/v1/completions", b"x" * 101)
    assert response.status_code == 413 and error_of(response)
    response = complete(FakeCluster(), model="other")
    assert response.status_code == 404 and error_of(response)["code"] == "model_not_found"
    assert ask(app_of(FakeCluster()), "GET", "/nowhere").status_code == 404
    assert error_of(ask(app_of(FakeCluster()), "GET", "/v1/completions"))["message"].startswith("Method Not Allowed")
