"""All children of a cluster under one thread: restarts while it runs, and an orderly end."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from dualpath.core.errors import ConfigError, ServiceError
from dualpath.launch.process import Child, Role

POLL_S = 0.05
STAGE_END_S = 5.0  # what the roles of one stage have for an orderly end before they are killed


class Supervisor:
    """Keeps roles running until `stop`, or until one of them refuses its configuration."""

    def __init__(self, roles: Sequence[Role], run_dir: Path, *, lifeline_dir: str, say: Callable[[str], None]) -> None:
        roles = sorted(roles, key=lambda role: role.stage)
        self._children = {role.name: Child(role, run_dir, lifeline_dir=lifeline_dir, say=say) for role in roles}
        self._say = say
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start all roles at once; they wait for each other."""
        for child in self._children.values():
            child.start(time.monotonic())
        self._thread.start()

    def check(self) -> None:
        """Raise ConfigError if a role refused its configuration, ServiceError if supervision itself broke."""
        if self._failure:
            raise self._failure

    def pids(self) -> dict[str, int]:
        """Process ids of the roles that run now."""
        return {name: child.pid for name, child in self._children.items() if child.pid is not None}

    def kill(self, name: str, sig: signal.Signals) -> None:
        """Signal a role as a failure would; ConfigError if there is no such role."""
        if name not in self._children:
            raise ConfigError(f"no role {name!r}; there are {', '.join(self._children)}")
        self._children[name].send(sig)

    def tails(self) -> str:
        """The last lines of every role's log."""
        return "\n".join(child.tail() for child in self._children.values())

    def stop(self) -> None:
        """End all roles, stage by stage; no process is left afterwards, even when this is interrupted."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        children = list(self._children.values())
        try:
            for _, stage in groupby(children, key=lambda child: child.role.stage):
                self._end(list(stage))
        finally:
            for child in children:
                child.send(signal.SIGKILL)
                child.end(timeout_s=STAGE_END_S)

    def _end(self, children: list[Child]) -> None:
        deadline_s = time.monotonic() + STAGE_END_S
        for child in children:
            child.send(signal.SIGTERM)
        for child in children:
            child.end(deadline_s - time.monotonic())

    def _run(self) -> None:
        while not self._failure and not self._stopping.wait(POLL_S):
            for child in self._children.values():
                try:
                    child.poll(time.monotonic())
                except OSError as error:
                    self._failure = ServiceError(f"cannot start {child.role.name}: {error}")
                if child.refusal:
                    self._failure = ConfigError(child.refusal)
