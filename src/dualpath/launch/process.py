"""One supervised child process: start, log, restart with growing pauses, stop.

The supervisor calls `poll(now_s)` every now and then, so restarts need neither a clock nor a thread here.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from dualpath.launch import lifeline

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
STEADY_S = 30.0  # a role that lived this long starts again with the first pause
CONFIG_EXIT_CODE = 2  # a ConfigError: starting again would not help
TAIL_BYTES = 4096
TAIL_LINES = 12


class Role(NamedTuple):
    """What to run: "engine p0/0" and its command. Roles of a lower stage are stopped first."""

    name: str
    command: tuple[str, ...]
    stage: int = 0
    env: Mapping[str, str] = {}


class Child:
    """A role's process, its successors after failures, and their common log file."""

    def __init__(self, role: Role, run_dir: Path, *, lifeline_dir: str, say: Callable[[str], None]) -> None:
        self.role = role
        self.log = run_dir / f"{role.name.replace(' ', '-').replace('/', '-')}.log"
        self.refusal: str | None = None  # why the role must not be started again
        self.restarts = 0
        self._env = {**os.environ, lifeline.VARIABLE: lifeline_dir, **role.env}
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._restart_s: float | None = None
        self._pause_s = FIRST_PAUSE_S

    @property
    def pid(self) -> int | None:
        """Process id; None while there is no process."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, now_s: float) -> None:
        """Start the process in a session of its own, so that Ctrl-C reaches the launcher alone."""
        self._restart_s, self._started_s = None, now_s
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.role.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )

    def poll(self, now_s: float) -> None:
        """Notice that the process died, start it again when its pause is over, or set `refusal`."""
        if self._restart_s is not None:
            if now_s >= self._restart_s:
                self.restarts += 1
                self.start(now_s)
        elif self._process and self._process.poll() is not None and not self.refusal:
            self._died(self._process.returncode, now_s)

    def _died(self, code: int, now_s: float) -> None:
        self._close_stdin()
        if code == CONFIG_EXIT_CODE and not self.restarts:  # later the cluster serves, perhaps without this role
            self.refusal = self._last_words()
            return
        if now_s - self._started_s >= STEADY_S:
            self._pause_s = FIRST_PAUSE_S
        self._restart_s = now_s + self._pause_s
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._say(f"{self.role.name} died ({how}); starting it again in {self._pause_s:g} s\n{self.tail()}")
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def tail(self) -> str:
        """The last lines of the log, indented, under the log's name."""
        lines = self._read_tail().splitlines()[-TAIL_LINES:]
        return "\n".join([f"  {self.log}:", *(f"    {line}" for line in lines)])

    def _last_words(self) -> str:
        """The message of a ConfigError that the role printed last, which may have several lines."""
        _, found, message = self._read_tail().rpartition("dualpath: error: ")
        return message.strip() if found else f"{self.role.name} refused to start\n{self.tail()}"

    def _read_tail(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")

    def send(self, sig: signal.Signals) -> None:
        """Signal the process and all that it started; nothing happens if it has ended."""
        if self.pid is not None:
            os.killpg(self.pid, sig)

    def end(self, timeout_s: float) -> None:
        """Wait for the process, kill it when the time is over; no restart follows."""
        self._restart_s = None
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self._say(f"{self.role.name} did not end in time; killing it")
            self.send(signal.SIGKILL)
            self._process.wait()
        self._close_stdin()

    def _close_stdin(self) -> None:
        if self._process and self._process.stdin:
            self._process.stdin.close()
