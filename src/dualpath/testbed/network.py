"""Carries out a layout's commands. Root only."""

import os
import shutil
import subprocess
from collections.abc import Sequence

from dualpath.core.errors import ConfigError, ServiceError
from dualpath.testbed.layout import Command

COMMAND_DEADLINE_S = 20.0
NEEDED = ("ip", "tc", "nsenter")


def check_privileges() -> None:
    """ConfigError unless this process may make networks and has the programs for it."""
    if os.geteuid() != 0:
        raise ConfigError("a testbed makes network namespaces, which needs root: run it with sudo")
    missing = [program for program in NEEDED if not shutil.which(program)]
    if missing:
        raise ConfigError(f"not installed: {', '.join(missing)}; on Debian: apt-get install iproute2 util-linux")


def run(command: Command) -> str:
    """What a command printed; ServiceError when it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise ServiceError(f"{' '.join(command)} took longer than {COMMAND_DEADLINE_S:g} s") from None
    if done.returncode:
        raise ServiceError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def run_all(commands: Sequence[Command]) -> None:
    """Carry out commands, in order, up to the first that fails."""
    for command in commands:
        run(command)


def namespaces() -> set[str]:
    """Names of all network namespaces of this machine."""
    return set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
