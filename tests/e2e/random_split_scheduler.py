"""A scheduler whose read policy splits every hit at a random block (seeded), to be run in place of the real role."""

import random
import sys
from itertools import pairwise
from pathlib import Path

from dualpath.core.config_file import load_config
from dualpath.core.plan import BlockRange, ReadPlan, ReadSegment
from dualpath.launch import lifeline
from dualpath.policy.loads import ReadChoice
from dualpath.policy.read import READ_POLICIES
from dualpath.scheduler.main import run

_rng = random.Random(int(sys.argv[2]))


def random_split(choice: ReadChoice) -> ReadPlan:
    """Up to four runs of blocks, each read by a random side."""
    hit = choice.hit
    cuts = sorted({hit.start, hit.stop, *(_rng.randint(hit.start, hit.stop) for _ in range(3))})
    ranges = [BlockRange(a, b) for a, b in pairwise(cuts)]
    return ReadPlan(tuple(ReadSegment(r, _rng.choice((choice.prefill.node, choice.decode.node))) for r in ranges))


lifeline.watch()
READ_POLICIES["split"] = random_split
run(load_config(Path(sys.argv[1])))
