"""A testbed's life: built from a layout, used, taken down to the last device.

Only what its state names is ever removed: namespaces, processes that were started for it, mounts in its folder.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dualpath.core.config_file import save_config
from dualpath.core.errors import ConfigError, ServiceError
from dualpath.testbed import service
from dualpath.testbed.cluster import cluster_config
from dualpath.testbed.layout import Layout
from dualpath.testbed.network import check_privileges, namespaces, run, run_all
from dualpath.testbed.state import Daemon, State, folder_of, load, save, start_ticks

END_S = 5.0
CONFIG_FILE = "config.json"
STORAGE_KINDS = ("s3", "mount")


def build(layout: Layout, storage: str, *, temporary: bool = False) -> State:
    """Make the testbed; on failure what was made is removed again. The caller holds its lock.

    ConfigError: not root, programs missing, names in use.
    """
    check_privileges()
    if storage not in STORAGE_KINDS:
        raise ConfigError(f"no storage {storage!r}; there are {', '.join(STORAGE_KINDS)}")
    service.juicefs()
    _check_free(layout)
    folder = folder_of(layout.name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = State(layout, storage, temporary, service.new_credentials())
    save(state)
    try:
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_text(secrets.token_hex(32))
        save_config(cluster_config(state), folder / CONFIG_FILE)
        run_all(layout.up_commands())
        _start_storage(state, folder)
    except BaseException:
        take_down(layout.name)
        raise
    return state


def _check_free(layout: Layout) -> None:
    if load(layout.name):
        raise ConfigError(f"testbed {layout.name} is up; end it with: dualpath testbed down --name {layout.name}")
    taken = namespaces() & {layout.namespace(host) for host in layout.hosts}
    if taken:
        raise ConfigError(f"namespaces {', '.join(sorted(taken))} exist and are not a testbed's; choose another --name")


def _start_storage(state: State, folder: Path) -> None:
    def spawn(name: str, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **env},
                start_new_session=True,
            )  # fmt: skip
        state.daemons[name] = Daemon(process.pid, start_ticks(process.pid) or 0)
        save(state)
        return process

    service.start_s3(state.layout, folder, state.environment, spawn)
    if state.storage == "mount":
        service.start_mounts(state.layout, folder, state.environment, spawn)


def take_down(name: str) -> bool:
    """Remove a testbed, also one whose maker crashed at any point; False when there is none."""
    state = load(name)
    if state is None:
        return False
    folder = folder_of(name)
    _end_processes(state)
    for place in folder.glob("mnt-*"):
        if os.path.ismount(place):
            run(["umount", "--lazy", str(place)])
    present = namespaces()
    for command in state.layout.down_commands():
        if command[-1] in present:
            run(command)
    shutil.rmtree(folder)
    return True


def _end_processes(state: State) -> None:
    """First what still runs in the hosts (a command that lost its terminal), then the storage service."""
    present = namespaces()
    pids = [
        int(pid)
        for host in state.layout.hosts
        if state.layout.namespace(host) in present
        for pid in run(["ip", "netns", "pids", state.layout.namespace(host)]).split()
    ]
    pids += [d.pid for d in state.daemons.values() if start_ticks(d.pid) == d.started_ticks]
    for sig in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            _signal(pid, sig)
        deadline_s = time.monotonic() + END_S
        while (pids := [pid for pid in pids if _alive(pid)]) and time.monotonic() < deadline_s:
            time.sleep(0.05)
    if pids:
        raise ServiceError(f"processes {pids} of testbed {state.layout.name} do not end")


def _signal(pid: int, sig: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that is our own child and has ended is reaped."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
