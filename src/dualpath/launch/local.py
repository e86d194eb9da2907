"""A whole cluster as processes of this machine."""

import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from dualpath.core.config import Config
from dualpath.core.config_file import check_config, save_config
from dualpath.core.errors import ServiceError
from dualpath.launch.lifeline import RUN_PREFIX
from dualpath.launch.port import free_port
from dualpath.launch.process import Role
from dualpath.launch.roles import cluster_roles
from dualpath.launch.supervisor import Supervisor

READY_POLL_S = 0.1
HEALTH_TIMEOUT_S = 2.0
_log = logging.getLogger(__name__)

Progress = Callable[[Sequence[str]], None]
"""Told again and again what is still missing."""


class LocalCluster:
    """`with LocalCluster(config) as cluster: ... cluster.url`: ready inside, nothing left of it after.

    Raises ConfigError when the config cannot be served (port in use, bad model), ServiceError when the cluster
    is not ready in time. Roles that die are restarted. `make_roles` is for tests.
    """

    def __init__(
        self,
        config: Config,
        *,
        say: Callable[[str], None] = _log.warning,
        make_roles: Callable[[Config, Path], list[Role]] = cluster_roles,
    ) -> None:
        self.config = config
        self._say = say
        self._make_roles = make_roles
        self._own_run_dir = not config.network.run_dir
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base address of the HTTP API, without a slash at its end."""
        network = self.config.network
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(network.host, network.host)
        return f"http://[{host}]:{network.port}" if ":" in host else f"http://{host}:{network.port}"

    def start(self) -> None:
        """Start all roles; `config` then holds port and run folder. Call stop() also if this fails."""
        port = free_port(self.config.network.host, self.config.network.port)
        run_dir = self._make_run_dir()
        network = msgspec.structs.replace(self.config.network, port=port, run_dir=str(run_dir))
        self.config = msgspec.structs.replace(self.config, network=network)
        check_config(self.config)
        config_file = run_dir / "config.json"
        save_config(self.config, config_file)
        self._supervisor = Supervisor(
            self._make_roles(self.config, config_file),
            run_dir,
            lifeline_dir=str(run_dir) if self._own_run_dir else "",
            say=self._say,
        )
        self._supervisor.start()

    def wait_ready(self, progress: Progress = lambda missing: None) -> None:
        """Return when the cluster can serve."""
        deadline_s = time.monotonic() + self.config.limits.start_deadline_s
        missing: list[str] = []
        with httpx.Client(base_url=self.url, timeout=HEALTH_TIMEOUT_S, trust_env=False) as http:
            while time.monotonic() < deadline_s:
                self.check()
                missing = _missing(http)
                if not missing:
                    return
                progress(missing)
                time.sleep(READY_POLL_S)
        raise ServiceError(
            f"not ready in {self.config.limits.start_deadline_s:g} s (limits.start_deadline_s); "
            f"still missing: {', '.join(missing)}\n{self._running.tails()}"
        )

    def check(self) -> None:
        """Raise what a role's refusal to start means; returns while all is well or being restarted."""
        self._running.check()

    def pids(self) -> dict[str, int]:
        """Process ids by role: "scheduler", "gateway", "agent p0", "engine p0/0"."""
        return self._running.pids()

    def kill(self, role: str, sig: signal.Signals = signal.SIGKILL) -> None:
        """Let a role fail; the supervisor then restarts it like any other that died."""
        self._running.kill(role, sig)

    def stop(self) -> None:
        """End all processes and remove what they left: sockets always, the run folder if it was made here."""
        if self._supervisor:
            self._supervisor.stop()
            self._supervisor = None
        run_dir = self.config.network.run_dir
        if self._own_run_dir and run_dir:
            shutil.rmtree(run_dir, ignore_errors=True)
        elif run_dir:
            for path in Path(run_dir).glob("*.sock"):
                path.unlink(missing_ok=True)

    @property
    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise ServiceError("the cluster is not running; use it inside its with block")
        return self._supervisor

    def _make_run_dir(self) -> Path:
        if self._own_run_dir:
            return Path(tempfile.mkdtemp(prefix=RUN_PREFIX))
        self.config.run_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.config.run_path


def _missing(http: httpx.Client) -> list[str]:
    """What keeps the cluster from being ready, in words; empty when it is."""
    try:
        answer: dict[str, Any] = http.get("/health").json()
    except (httpx.HTTPError, ValueError):
        return ["gateway"]
    if answer.get("ready"):
        return []
    return list(answer.get("missing") or ["cluster"])
