"""The launcher with small fake roles: restarts, refusals, an end that leaves nothing, also after kill -9."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dualpath.core.config import Config
from dualpath.core.config_file import load_config
from dualpath.core.errors import ConfigError, ServiceError
from dualpath.core.model import weights_fingerprint
from dualpath.launch.folders import settle_folders
from dualpath.launch.lifeline import RUN_PREFIX
from dualpath.launch.local import LocalCluster
from dualpath.launch.port import free_port
from dualpath.launch.process import Child, Role
from dualpath.launch.roles import cluster_roles

DEADLINE_S = 10.0
WATCH = "import time; from dualpath.launch import lifeline; lifeline.watch();"
SLEEPS = WATCH + "time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPS
GATEWAY = """
import http.server, json, sys
from dualpath.core.config_file import load_config
from dualpath.launch import lifeline
from pathlib import Path

lifeline.watch()

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if READY else 503)
        self.end_headers()
        self.wfile.write(json.dumps({"missing": ["engine d0/0"]}).encode())

port = load_config(Path(sys.argv[1])).network.port
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


def python(name: str, code: str, *arguments: str, stage: int = 0) -> Role:
    return Role(name, (sys.executable, "-c", textwrap.dedent(code), *arguments), stage)


def fakes(*others: Role, ready: bool = True) -> Callable[[Config, Path], list[Role]]:
    code = GATEWAY.replace("READY", str(ready))
    return lambda config, file: [python("gateway", code, str(file)), *others]


def config_of(run_dir: object = "", **limits: float) -> Config:
    return load_config(
        None,
        {
            "model": {"path": "/nowhere", "version": "1"},
            "storage": {"path": "/nowhere"},
            "network": {"port": 0, "run_dir": str(run_dir)},
            "limits": limits,
        },
    )


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "condition did not come true in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended but was not yet collected by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ignores(pid: int, sig: signal.Signals) -> bool:
    """Whether a process has set a signal to be ignored."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
    return bool(int(line.split()[1], 16) >> (sig - 1) & 1)


def test_ready_inside_and_nothing_left_after() -> None:
    with LocalCluster(config_of(), make_roles=fakes(python("agent p0", SLEEPS, stage=3))) as cluster:
        pids, run_dir = cluster.pids(), Path(cluster.config.network.run_dir)
        assert set(pids) == {"gateway", "agent p0"}
        assert run_dir.name.startswith(RUN_PREFIX)
        assert (run_dir / "agent-p0.log").exists()
        assert cluster.url == f"http://127.0.0.1:{cluster.config.network.port}"
    assert not any(alive(pid) for pid in pids.values())
    assert not run_dir.exists()
    with pytest.raises(ServiceError, match="not running"):
        cluster.pids()


def test_a_given_run_folder_keeps_only_logs(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with LocalCluster(config, make_roles=fakes()), socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "agent-p0.sock"))
    assert {path.name for path in tmp_path.iterdir()} == {"gateway.log", "lock"}


def test_two_clusters_cannot_share_a_run_folder(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with LocalCluster(config, make_roles=fakes()):
        (tmp_path / "agent-p0.sock").touch()
        second = LocalCluster(config, make_roles=fakes())
        with pytest.raises(ConfigError, match="another cluster runs in"), second:
            pytest.fail("it must not start")
        assert (tmp_path / "agent-p0.sock").exists()


def test_a_killed_role_comes_back() -> None:
    said: list[str] = []
    with LocalCluster(config_of(), say=said.append, make_roles=fakes(python("agent p0", SLEEPS))) as cluster:
        before = cluster.pids()["agent p0"]
        cluster.kill("agent p0")
        until(lambda: cluster.pids().get("agent p0", before) != before)
        cluster.check()
        with pytest.raises(ConfigError, match="there are gateway, agent p0"):
            cluster.kill("agent p9")
    assert "agent p0 died (SIGKILL); starting it again in 0.5 s" in said[0]


def test_a_refused_configuration_stops_the_start() -> None:
    refuses = "import sys; print('Hm\\ndualpath: error: no such model', file=sys.stderr); sys.exit(2)"
    cluster = LocalCluster(config_of(), make_roles=fakes(python("engine p0/0", refuses), ready=False))
    with pytest.raises(ConfigError, match=r"^no such model$"), cluster:
        pytest.fail("it must not become ready")


def test_a_role_that_refuses_to_come_back_does_not_end_the_cluster(tmp_path: Path) -> None:
    """What it needs may come back, such as space on a disk; until then the others serve."""
    first = tmp_path / "first"
    once = f"""
        import pathlib, sys
        if pathlib.Path({str(first)!r}).exists():
            print("dualpath: error: the disk is full", file=sys.stderr)
            sys.exit(2)
        pathlib.Path({str(first)!r}).touch()
    """
    said: list[str] = []
    code = textwrap.dedent(once) + SLEEPS
    with LocalCluster(config_of(), say=said.append, make_roles=fakes(python("agent p0", code))) as cluster:
        until(first.exists)
        cluster.kill("agent p0")
        until(lambda: len(said) > 1)
        cluster.check()
        assert "agent p0 died (exit code 2)" in said[1] and "the disk is full" in said[1]
        first.unlink()
        until(first.exists)


def test_not_ready_in_time_says_what_is_missing_and_shows_logs() -> None:
    talks = "print('still loading weights', flush=True);" + SLEEPS
    cluster = LocalCluster(config_of(start_deadline_s=2.0), make_roles=fakes(python("engine d0/0", talks), ready=False))
    with pytest.raises(ServiceError, match=r"(?s)missing: engine d0/0.*still loading weights"), cluster:
        pytest.fail("it must not become ready")


def test_a_role_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualpath.launch.supervisor.STAGE_END_S", 0.3)
    said: list[str] = []
    with LocalCluster(config_of(), say=said.append, make_roles=fakes(python("agent p0", STUBBORN))) as cluster:
        pid = cluster.pids()["agent p0"]
        until(lambda: ignores(pid, signal.SIGTERM))
    assert not alive(pid)
    assert said == ["agent p0 did not end in time; killing it"]


def test_roles_end_in_the_order_of_their_stages(tmp_path: Path) -> None:
    log = tmp_path / "ends"
    code = f"""
    import signal, sys, time
    def end(*_):
        with open({str(log)!r}, "a") as file:
            file.write(sys.argv[1])
        sys.exit()
    signal.signal(signal.SIGTERM, end)
    open({str(tmp_path)!r} + "/up" + sys.argv[1], "w")
    time.sleep(60)
    """
    roles = [python(f"role {name}", code, name, stage=stage) for name, stage in (("c", 3), ("a", 1), ("b", 2))]
    with LocalCluster(config_of(), make_roles=fakes(*roles)):
        until(lambda: len(list(tmp_path.glob("up*"))) == 3)
    assert log.read_text() == "abc"


def test_kill_9_of_the_launcher_ends_all_roles(tmp_path: Path) -> None:
    code = f"""
    import sys, time
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_supervisor import LocalCluster, SLEEPS, config_of, fakes, python
    with LocalCluster(config_of(), make_roles=fakes(python("agent p0", SLEEPS))) as cluster:
        print(*cluster.pids().values(), cluster.config.network.run_dir, flush=True)
        time.sleep(60)
    """
    launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    try:
        assert launcher.stdout is not None
        *pids, run_dir = launcher.stdout.readline().split()
        assert len(pids) == 2
        assert all(alive(int(pid)) for pid in pids)
    finally:
        launcher.kill()
        launcher.wait()
    until(lambda: not any(alive(int(pid)) for pid in pids))
    until(lambda: not Path(run_dir).exists())


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    fails = python("engine p0/0", "print('boom'); raise SystemExit(1)")
    child = Child(fails, tmp_path, lifeline_dir="", say=lambda text: None)
    yield child
    child.send(signal.SIGKILL)
    child.end(timeout_s=DEADLINE_S)


def test_pauses_double_up_to_a_bound_and_start_again_after_a_steady_life(child: Child) -> None:
    now_s, pauses = 0.0, []
    child.start(now_s)
    for lived_s in [0, 0, 0, 0, 0, 0, 0, 31]:
        until(lambda: child.pid is None)
        now_s += lived_s
        child.poll(now_s)
        pause_s = next(
            p for p in (0.5, 1, 2, 4, 8, 15) if not _starts(child, now_s + p - 0.01) and _starts(child, now_s + p)
        )
        pauses.append(pause_s)
        now_s += pause_s
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15, 0.5]


def _starts(child: Child, now_s: float) -> bool:
    before = child.restarts
    child.poll(now_s)
    return child.restarts > before


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
        cluster = LocalCluster(load_config(None, {"network": {"port": port}}))
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use; .*--port"), cluster:
            pytest.fail("it must not start")
    assert free_port("127.0.0.1", port) == port


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        free_port("192.0.2.1", 0)


def test_model_and_store_are_settled_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALPATH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    config = settle_folders(load_config(None, {"model": {"name": str(tmp_path)}}))
    assert config.model.path == str(tmp_path.resolve())
    assert config.model.version == weights_fingerprint(tmp_path)
    assert config.storage.path == str(tmp_path / "cache" / "store")
    assert settle_folders(config) == config


def test_roles_of_a_config() -> None:
    config = load_config(None, {"cluster": {"topology": "1P2D", "engines_per_node": 2}})
    roles = {role.name: role for role in cluster_roles(config, Path("/run/config.json"))}
    assert sorted(roles) == [
        *("agent d0", "agent d1", "agent p0", "engine d0/0", "engine d0/1", "engine d1/0", "engine d1/1"),
        *("engine p0/0", "engine p0/1", "gateway", "scheduler"),
    ]
    engine = roles["engine d1/0"]
    assert engine.command[1:] == ("-m", "dualpath", "engine", "d1/0", "--config", "/run/config.json")
    assert int(engine.env["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 6)


def test_a_role_that_was_started_by_hand_may_have_no_stdin() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DUALPATH_LIFELINE"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + "time.sleep(0.2); print('alive')"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        timeout=DEADLINE_S,
        check=True,
    )
    assert done.stdout == "alive\n"
