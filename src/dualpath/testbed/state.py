"""What is known of a testbed between commands, in a folder of its own that only root reads."""

import fcntl
import os
import re
from pathlib import Path
from typing import BinaryIO

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.testbed.layout import Layout

ROOT = Path("/var/lib/dualpath-testbed")  # on disk: the stored blocks lie there too
NAME = re.compile(r"[a-z0-9]{1,12}")  # short enough for every device and namespace


class Daemon(msgspec.Struct, frozen=True):
    """A process of the testbed: its start time tells it from a later one with the same number."""

    pid: int
    started_ticks: int


class State(msgspec.Struct):
    """Written before anything is made, so that whatever was made can be removed."""

    layout: Layout
    storage: str  # "s3" or "mount"
    temporary: bool  # gone with the command that made it
    environment: dict[str, str]  # credentials of the S3 service
    daemons: dict[str, Daemon] = {}


def folder_of(name: str) -> Path:
    """The testbed's folder; ConfigError for names that are none."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"testbed name {name!r}: 1 to 12 small letters and digits")
    return ROOT / name


def names() -> list[str]:
    """All testbeds of this machine that have a folder."""
    return sorted(path.parent.name for path in ROOT.glob("*/state.json"))


def load(name: str) -> State | None:
    """The state of a testbed; None when there is none."""
    try:
        return msgspec.json.decode((folder_of(name) / "state.json").read_bytes(), type=State)
    except FileNotFoundError:
        return None


def save(state: State) -> None:
    """Write whole or not at all."""
    folder = folder_of(state.layout.name)
    temporary = folder / "state.json.new"
    temporary.touch(mode=0o600)
    temporary.write_bytes(msgspec.json.encode(state))
    os.replace(temporary, folder / "state.json")


def lock(name: str) -> BinaryIO:
    """Hold the testbed for this process; ConfigError when another one works on it. Ends with the file or process."""
    file = _lock(name, fcntl.LOCK_EX)
    if file is None:
        raise ConfigError(f"another command works on testbed {name}; wait for it, or choose another --name")
    return file


def lock_to_use(name: str) -> tuple[BinaryIO, State | None]:
    """A testbed that is up, held with others who use it; or None, and then held alone, as by `lock`."""
    shared = _lock(name, fcntl.LOCK_SH)
    if shared is not None:
        state = load(name)
        if state is not None and not state.temporary:
            return shared, state
        shared.close()
    return lock(name), None


def _lock(name: str, how: int) -> BinaryIO | None:
    ROOT.mkdir(mode=0o700, exist_ok=True)
    file = (ROOT / f"{name}.lock").open("wb")
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def start_ticks(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return None
