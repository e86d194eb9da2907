"""What pyproject.toml cannot say: with DUALPATH_COMPILED=1 the pure modules become machine code (`make compiled`)."""

import os
from glob import glob

from setuptools import setup

# The code that decides and the simulator's innermost one. Modules that import each other in a circle stay as they are.
_COMPILED = [
    *(f"src/dualpath/core/{name}.py" for name in ("ids", "plan", "runs")),
    *sorted(glob("src/dualpath/policy/*.py")),
    *sorted(glob("src/dualpath/protocol/*.py")),
    *(f"src/dualpath/scheduler/{name}.py" for name in ("index", "keyset")),
    *(f"src/dualpath/sim/{name}.py" for name in ("fair_share", "kernel", "links", "network", "read_queue")),
]


def _extensions() -> list:
    if os.environ.get("DUALPATH_COMPILED") != "1":
        return []
    from mypyc.build import mypycify

    return mypycify(["--ignore-missing-imports", *_COMPILED])


setup(ext_modules=_extensions())
