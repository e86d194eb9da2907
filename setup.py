"""What pyproject.toml cannot say: with DUALPATH_COMPILED=1 the pure modules become machine code (`make compiled`)."""

import os
from glob import glob

from setuptools import setup

# The code that decides, and the simulator's. sim/grant, prefill and decode know each other: mypyc crashes on circles.
_COMPILED = [
    *(f"src/dualpath/core/{name}.py" for name in ("ids", "plan", "runs")),
    *sorted(glob("src/dualpath/policy/*.py")),
    *sorted(glob("src/dualpath/protocol/*.py")),
    *(f"src/dualpath/scheduler/{name}.py" for name in ("index", "keyset")),
    *(
        f"src/dualpath/sim/{name}.py"
        for name in ("agents", "cluster", "fair_share", "kernel", "links", "network", "node", "read_queue", "transfers")
    ),
]


def _extensions() -> list:
    if os.environ.get("DUALPATH_COMPILED") != "1":
        return []
    from mypyc.build import mypycify

    return mypycify(["--ignore-missing-imports", *_COMPILED])


setup(ext_modules=_extensions())
