"""A serving doctor as a process of this machine, to measure against where there is no peer."""

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dualpath.core.errors import ServiceError

HOST = "127.0.0.1"
_START_S = 20.0
_END_S = 5.0


@contextmanager
def serving_process(kind: str, seconds: float) -> Iterator[str]:
    """The address of a fresh serving doctor, which ends with the context; or, if we are killed, after `seconds`."""
    command = [sys.executable, "-m", "dualpath", "doctor", "--serve", "--host", HOST]
    command += ["--transport", kind, "--seconds", str(max(1, int(seconds)))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield _address(process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None and process.stderr is not None
    ready, _, _ = select.select([process.stdout], [], [], _START_S)
    address = process.stdout.readline().strip() if ready else ""
    if not address:
        process.terminate()
        said = process.stderr.read().strip().splitlines()
        raise ServiceError(f"the peer on loopback did not start: {said[-1] if said else 'it said nothing'}")
    return address
