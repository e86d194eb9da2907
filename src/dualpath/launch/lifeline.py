"""How a role ends with its launcher, even when that is killed with -9.

The launcher holds the only write end of a pipe that is the role's stdin. When the launcher is gone, by
whatever cause, the kernel closes that end, the role reads end of file and kills its process group. Unlike
Linux's parent death signal this does not depend on which thread of the launcher started the role.
"""

import os
import shutil
import signal
import threading
from pathlib import Path

VARIABLE = "DUALPATH_LIFELINE"  # set for roles under a launcher: its private run folder, or "" if there is none
RUN_PREFIX = "dualpath-run-"


def watch() -> None:
    """Start watching if a launcher started this process. Call it first, before slow imports."""
    run_dir = os.environ.get(VARIABLE)
    if run_dir is not None:
        threading.Thread(target=_end_with_launcher, args=(run_dir,), name="lifeline", daemon=True).start()


def _end_with_launcher(run_dir: str) -> None:
    while os.read(0, 1):
        pass
    if Path(run_dir).name.startswith(RUN_PREFIX):  # nobody else is left to remove it
        shutil.rmtree(run_dir, ignore_errors=True)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
