"""What operators look at: models, health, metrics, explanations; and the API key."""

import asyncio
import subprocess
import sys
from typing import Any

import httpx
import msgspec

from dualpath.core.errors import ServiceError
from dualpath.core.report import ClusterReport, EngineStats, NodeStats, Role
from dualpath.core.request import Timeline
from dualpath.gateway.app import build_app
from dualpath.gateway.chat_template import ChatTemplate
from dualpath.gateway.tokenizer import Tokenizer
from dualpath.testing.fake_cluster import BYTES, CHATML, TIMELINE, FakeCluster, ask, error_of


def app_of(cluster: FakeCluster, **options: Any) -> Any:
    return build_app(cluster, Tokenizer(BYTES, ChatTemplate(CHATML, {})), **options)


def test_timing_header_comment_and_explain() -> None:
    cluster = FakeCluster()

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app_of(cluster)), base_url="http://g") as http:
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
    assert "dualpath_ttft_seconds_count 2.0" in metrics.text and "dualpath_tpot_seconds_count 2.0" in metrics.text


def test_models_health_cluster_metrics() -> None:
    cluster = FakeCluster()
    node = NodeStats("p0", Role.PREFILL, read_bytes=77, lane_bytes={"layers_out": 5})
    node.transport_bytes, node.transport_fallbacks = {"shm": 4, "tcp": 1}, {"shm": 2}
    engines = [EngineStats("p0/0", Role.PREFILL, steps=3)]
    cluster.state = ClusterReport(
        True, [], [node], engines, decisions={"read:split": 2}, recomputes={"BlockMissing": 1}
    )
    model = ask(app_of(cluster), "GET", "/v1/models").json()["data"][0]
    assert model["id"] == "fake" and model["max_model_len"] == 900
    assert ask(app_of(cluster), "GET", "/v1/models/fake").json() == model
    assert error_of(ask(app_of(cluster), "GET", "/v1/models/a/b"))["code"] == "model_not_found"
    assert ask(app_of(cluster), "GET", "/health").json() == {"status": "ready", "missing": []}
    assert msgspec.convert(ask(app_of(cluster), "GET", "/cluster").json(), ClusterReport) == cluster.state
    text = ask(app_of(cluster), "GET", "/metrics").text
    for line in (
        'dualpath_storage_read_bytes_total{node="p0",role="prefill"} 77.0',
        'dualpath_transferred_bytes_total{lane="layers_out",node="p0"} 5.0',
        'dualpath_transport_bytes_total{node="p0",transport="tcp"} 1.0',
        'dualpath_transport_fallbacks_total{node="p0",transport="shm"} 2.0',
        'dualpath_engine_steps_total{engine="p0/0",role="prefill"} 3.0',
        'dualpath_decisions_total{choice="split",kind="read"} 2.0',
        'dualpath_recomputes_total{cause="BlockMissing"} 1.0',
        "dualpath_ready 1.0",
    ):
        assert line in text


def test_not_ready_and_no_scheduler() -> None:
    cluster = FakeCluster()
    cluster.state = ClusterReport(missing=["no decode engine"])
    response = ask(app_of(cluster), "GET", "/health")
    assert response.status_code == 503 and response.json()["missing"] == ["no decode engine"]
    cluster.state = ServiceError("the scheduler does not answer")
    assert ask(app_of(cluster), "GET", "/health").json()["missing"] == ["the scheduler does not answer"]
    assert "dualpath_ready 0.0" in ask(app_of(cluster), "GET", "/metrics").text
    assert ask(app_of(cluster), "GET", "/cluster").status_code == 503


def test_api_key() -> None:
    def status(path: str, key: str | None) -> int:
        headers = {"authorization": key} if key else None
        return ask(app_of(FakeCluster(), api_key="sesam"), "GET", path, headers=headers).status_code

    assert status("/v1/models", None) == status("/metrics", "Bearer sesamX") == 401
    assert status("/v1/models", "Bearer sesam") == status("/health", None) == 200


def test_the_gateways_process_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, dualpath.gateway.main; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
