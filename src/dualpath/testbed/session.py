"""One command in a testbed: one that is up, or a temporary one that is gone afterwards."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import BinaryIO

from dualpath.core.errors import ConfigError, ServiceError
from dualpath.testbed import janitor
from dualpath.testbed.layout import Layout
from dualpath.testbed.state import State, folder_of, lock_to_use
from dualpath.testbed.testbed import CONFIG_FILE, build, take_down

CONFIGURED = ("replay", "up")  # commands that take --config


def run_in(layout: Layout, storage: str, host: str, command: Sequence[str]) -> int:
    """Run a dualpath command on a host of the testbed; its exit code.

    A testbed of this name that is up is used as it is, also by several commands at once; otherwise one is made for the
    command. What a crash left of a temporary one is removed first.
    """
    held, state = lock_to_use(layout.name)
    with held:
        if state is not None:
            return _run(state, host, command)
        take_down(layout.name)
        return _run_in_temporary(layout, storage, host, command, held)


def _run_in_temporary(layout: Layout, storage: str, host: str, command: Sequence[str], held: BinaryIO) -> int:
    keeper = janitor.hire(layout.name, held)
    try:
        return _run(build(layout, storage, temporary=True), host, command)
    finally:
        if janitor.dismiss(keeper):
            raise ServiceError(f"testbed {layout.name} could not be removed; see above")


def _run(state: State, host: str, command: Sequence[str]) -> int:
    """As the user's own process: Ctrl-C reaches it, and we wait until it has cleaned up."""
    layout = state.layout
    if host not in layout.hosts:
        raise ConfigError(f"no host {host!r} in testbed {layout.name}; there are {', '.join(layout.hosts)}")
    config = ["--config", str(folder_of(layout.name) / CONFIG_FILE)] if command[0] in CONFIGURED else []
    child = subprocess.Popen(
        [*layout.inside(host), sys.executable, "-m", "dualpath", *command, *config],
        env={**os.environ, **state.environment},
    )
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue
