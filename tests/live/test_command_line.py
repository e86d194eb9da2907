"""The command line as a process: exit codes, one plain line for wrong input, help without slow imports."""

import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

TIMEOUT_S = 30


def dualpath(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dualpath", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_version() -> None:
    done = dualpath("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "dualpath")


COMMANDS = (
    "up", "explain", "replay", "simulate", "plan", "reproduce", "calibrate", "doctor", "qos", "testbed", "scheduler",
    "gateway", "agent", "engine",
)  # fmt: skip


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_help_teaches_and_imports_nothing_slow(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from dualpath.cli.main import app\n"
        f"try: app({[*command, '--help']})\n"
        "except SystemExit: pass\n"
        "print('SLOW', {'torch', 'transformers', 'httpx', 'uvicorn', 'zmq'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert "Usage:" in done.stdout
    assert done.stdout.endswith("SLOW set()\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("up", "--topology", "3P"), "cannot read topology '3P'"),
        (("up", "--config", "/nowhere.toml"), "cannot read config file /nowhere.toml"),
        (("agent", "p7"), "no node 'p7'; there are p0, d0"),
        (("engine", "d0/3"), "no engine 'd0/3'; there are p0/0, d0/0"),
        (("up", "--host", "0.0.0.0"), "set network.api_key"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    done = dualpath(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("dualpath: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_unknown_flags_are_wrong_input_too() -> None:
    done = dualpath("up", "--topolgy", "1P1D")
    assert done.returncode == 2
    assert "--topology" in done.stderr


def test_explain_without_a_cluster() -> None:
    done = dualpath("explain", "x", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "give its address with --url" in done.stderr


EXPLANATION = {
    "id": "cmpl-1",
    "prompt_tokens": 640,
    "cached_tokens": 576,
    "completion_tokens": 7,
    "finish_reason": "stop",
    "spans": {"queue_ns": 1_500_000, "prefill_ns": None},
    "timeline": {
        "prefill_engine": "p0/0",
        "decode_engine": "d0/0",
        "read_bytes_prefill": 1000,
        "read_bytes_decode": 2000,
        "read_bytes_relay": 3000,
        "recompute_causes": ["lost [p1]"],
    },
}


class Explains(http.server.BaseHTTPRequestHandler):
    """Knows one request."""

    def do_GET(self) -> None:
        found = self.path == "/explain/cmpl-1"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps(EXPLANATION if found else {"error": {"message": "no such request"}}).encode())


def test_explain_prints_spans_and_sides() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Explains) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        found, absent = dualpath("explain", "cmpl-1", "--url", url), dualpath("explain", "a/b", "--url", url)
        server.shutdown()
    text = " ".join(found.stdout.split())
    assert "640 prompt tokens (576 cached), 7 generated, ended by stop" in text
    assert "1.5" in text
    assert "2 KB by the decode node" in text
    assert "3 KB by a third one" in text
    assert "started again: lost [p1]" in text
    assert (absent.returncode, absent.stderr) == (1, "dualpath: error: no such request\n")


def test_a_closed_reader_is_no_traceback(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    command = f"{sys.executable} -m dualpath up --help 2>{errors} | true"
    subprocess.run(["bash", "-c", command], timeout=TIMEOUT_S, check=True)
    assert "Traceback" not in errors.read_text()
