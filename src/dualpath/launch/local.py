"""A whole cluster as processes of this machine."""

import logging
import signal
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
from dualpath.launch.folders import settle_folders
from dualpath.launch.port import free_port
from dualpath.launch.process import Role
from dualpath.launch.roles import cluster_roles
from dualpath.launch.rundir import RunDir
from dualpath.launch.supervisor import Supervisor

READY_POLL_S = 0.1
HEALTH_TIMEOUT_S = 2.0
_log = logging.getLogger(__name__)

Progress = Callable[[Sequence[str]], None]
"""Told again and again what is still missing."""


class LocalCluster:
    """`with LocalCluster(config) as cluster: cluster.url`: ready inside, nothing left after.

    Raises ConfigError when the config cannot be served (port in use, bad model), ServiceError when it
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
        self._run_dir: RunDir | None = None
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
        """Start all roles; `config` then holds port, model and folders. Call stop() also if this fails."""
        port = free_port(self.config.network.host, self.config.network.port)
        self.config = settle_folders(self.config)
        self._run_dir = run_dir = RunDir(self.config.network.run_dir)
        network = msgspec.structs.replace(self.config.network, port=port, run_dir=str(run_dir.path))
        self.config = msgspec.structs.replace(self.config, network=network)
        check_config(self.config)
        config_file = run_dir.path / "config.json"
        save_config(self.config, config_file)
        self._supervisor = Supervisor(
            self._make_roles(self.config, config_file),
            run_dir.path,
            lifeline_dir=str(run_dir.path) if run_dir.private else "",
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
        """End all processes and remove what they left; only logs in a run folder of the operator's stay."""
        if self._supervisor:
            self._supervisor.stop()
            self._supervisor = None
        if self._run_dir:
            self._run_dir.close()
            self._run_dir = None

    @property
    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise ServiceError("the cluster is not running; use it inside its with block")
        return self._supervisor


def _missing(http: httpx.Client) -> list[str]:
    """What keeps the cluster from being ready, in words; empty when it is."""
    try:
        answer = http.get("/health")
        if answer.is_success:
            return []
        body: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError):
        return ["gateway"]
    return list(body.get("missing") or [f"/health answered {answer.status_code}"])
