"""Counters: the report is taken when the cluster is at rest, and differences are a run's own."""

import http.server
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from dualpath.bench import counters
from dualpath.bench.counters import NodeSpent, cpu_seconds, settled_report, spent_between
from dualpath.core.errors import ServiceError
from dualpath.core.ids import NodeId
from dualpath.core.report import ClusterReport, NodeStats, Role

P0 = NodeId("p0")
BEAT_S = 0.005


def report(read_bytes: int = 0, *, queue: int = 0, **fields: int) -> ClusterReport:
    return ClusterReport(nodes=[NodeStats(P0, Role.PREFILL, read_bytes=read_bytes, read_queue_blocks=queue)], **fields)


@contextmanager
def reporting(*reports: ClusterReport) -> Iterator[str]:
    """A server that answers with one report after the other, then with the last for ever."""
    left = list(reports)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/cluster" else 404)
            self.end_headers()
            self.wfile.write(msgspec.json.encode(left.pop(0) if len(left) > 1 else left[0]))

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_at_rest_means_idle_and_counters_that_stand_still() -> None:
    reports = [
        report(1, running_requests=1), report(1, waiting_requests=1), report(1, queue=1), report(2), report(3),
        report(3, pending_writes=1), report(3),
    ]  # fmt: skip
    with reporting(*reports) as url:
        assert settled_report(url, BEAT_S) == report(3, pending_writes=1)
    with reporting(*reports) as url:
        assert settled_report(url, BEAT_S, durable=True) == report(3)


def test_a_cluster_that_never_rests_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "SETTLE_DEADLINE_S", 0.1)
    with reporting(report(running_requests=2)) as url, pytest.raises(ServiceError, match="2 requests run"):
        settled_report(url, BEAT_S)


def test_no_report_is_an_error() -> None:
    with pytest.raises(ServiceError, match="did not report"):
        settled_report("http://127.0.0.1:9", BEAT_S)


def test_differences() -> None:
    before, after = report(10), report(35)
    before.any_read_ns, after.any_read_ns = 5, 12
    before.decisions, after.decisions = {"read:split": 1, "read:prefill": 4}, {"read:split": 3, "read:prefill": 4}
    after.recomputes = {"missing": 1}
    spent = spent_between(before, after)
    assert (spent.any_read_ns, spent.decisions, spent.recomputes) == (7, {"read:split": 2}, {"missing": 1})
    assert spent.nodes == [NodeSpent(P0, Role.PREFILL, 25, 0, 0, 0)]
    assert (spent.read_bytes(Role.PREFILL), spent.read_bytes(Role.DECODE)) == (25, 0)


def test_a_node_that_started_again_counts_from_there() -> None:
    assert spent_between(report(100), report(30)).nodes[0].read_bytes == 30


def test_cpu_time_is_by_kind_of_process_and_has_what_its_children_take() -> None:
    script = "sh -c 'while :; do :; done' & sh -c 'sleep 60' & wait"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True) as process:
        try:
            pids = {"engine p0/0": process.pid, "engine d0/0": process.pid, "gateway": 2**22 + 1}
            deadline_s = time.monotonic() + 30
            while (seconds := cpu_seconds(pids))["engine"] < 0.4 and time.monotonic() < deadline_s:
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert set(seconds) == {"client", "engine"}
    assert seconds["engine"] >= 0.4, "the parent itself only waits"
