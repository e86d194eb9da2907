"""Takes a temporary testbed down when its owner is done, or gone by whatever cause.

The owner holds the write end of this process's stdin and the testbed's lock, which this process inherited: nobody else
can touch the testbed before it is removed.
"""

import os
import subprocess
import sys
from typing import BinaryIO

from dualpath.testbed.testbed import take_down


def hire(name: str, lock: BinaryIO) -> subprocess.Popen[bytes]:
    """A janitor for a testbed that is about to be built; close its stdin and wait for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "dualpath.testbed.janitor", name],
        stdin=subprocess.PIPE, pass_fds=[lock.fileno()], start_new_session=True,
    )  # fmt: skip


def dismiss(janitor: subprocess.Popen[bytes]) -> int:
    """Let it do its work; its exit code."""
    assert janitor.stdin is not None
    janitor.stdin.close()
    return janitor.wait()


if __name__ == "__main__":
    while os.read(0, 1):
        pass
    take_down(sys.argv[1])
