"""What clients see: vLLM's own answers, through the gateway."""

import json
from typing import Any

import httpx
import openai
import pytest

from dualpath.doctor.probe import PROMPT_TOKENS, probe
from dualpath.launch.local import LocalCluster
from vllm_tests.servers import decode_urls

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}},
}
QUESTION = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture
def client(running: LocalCluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")


def test_chat_streams_what_it_answers_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="model", messages=QUESTION, max_tokens=20, temperature=0)
    with client.chat.completions.create(
        model="model", messages=QUESTION, max_tokens=20, temperature=0, stream=True
    ) as stream:
        parts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(parts) == whole.choices[0].message.content
    assert len(parts) > 10, "tokens come one by one"
    assert whole.usage.completion_tokens == 20


def test_several_sequences_logprobs_and_stops(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="model", messages=QUESTION, max_tokens=8, n=3, temperature=1.0, seed=1, logprobs=True, top_logprobs=2
    )
    assert len(answer.choices) == 3
    assert all(len(choice.logprobs.content) <= 8 for choice in answer.choices)
    stopped = client.completions.create(
        model="model", prompt="1, 2, 3, 4, 5,", max_tokens=40, temperature=0, stop=["9"]
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert "9" not in stopped.choices[0].text


def test_guided_decoding_and_tools_as_from_plain_vllm(running: LocalCluster, plain: str) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    guided = {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}}
    choice = {"type": "function", "function": {"name": "look_up"}}
    for fields in (guided, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": choice}):
        body = {"model": "model", "messages": QUESTION, "max_tokens": 40, "temperature": 0, **fields}
        ours, theirs = (
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()["choices"][0]
            for url in (running.url, plain)
        )
        assert _without_ids(ours) == _without_ids(theirs), fields
        if "response_format" in fields:
            assert json.loads(ours["message"]["content"])["colour"] in ("red", "blue")


def _without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    for call in choice["message"].get("tool_calls") or []:
        call["id"] = ""
    return choice


def test_what_has_no_single_prompt_is_served_without_the_store(client: openai.OpenAI) -> None:
    two = client.completions.create(model="model", prompt=["one two", "three four"], max_tokens=3, temperature=0)
    assert len(two.choices) == 2


def test_refusals_are_vllms_own_and_the_rest_passes_through(running: LocalCluster) -> None:
    with httpx.Client(base_url=running.url, timeout=60) as http:
        unknown = http.post("/v1/completions", json={"model": "other", "prompt": "x"})
        assert unknown.status_code == 404
        long = http.post("/v1/completions", json={"model": "model", "prompt": "word " * 3000, "max_tokens": 4})
        assert long.status_code == 400
        assert "1536" in long.text
        foreign = http.post("/v1/completions", json={"model": "model", "prompt": "x", "kv_transfer_params": {"a": 1}})
        assert foreign.status_code == 400
        assert http.get("/v1/models").json()["data"][0]["id"] == "model"
        assert http.get("/version").status_code == 200
        assert http.post("/tokenize", json={"model": "model", "prompt": "a b"}).json()["count"] == 2
        theirs = httpx.get(f"{decode_urls(running)[0]}/metrics", timeout=10).text
        assert "vllm:dualpath_loaded_bytes_total" in theirs
        metrics = http.get("/metrics").text
        assert 'dualpath_storage_read_bytes_total{node="d0"' in metrics


def test_doctor_proves_that_the_pair_works(running: LocalCluster) -> None:
    found = probe(running.url)
    assert found.cached_tokens == PROMPT_TOKENS // 64 * 64
    assert {each.role for each in found.carried} == {"prefill", "decode"}
    assert sum(each.read + each.retained for each in found.carried) > 0
