"""Compiled code does exactly what its source does: `make test-compiled`, which names the interpreter of the source."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from dualpath.policy import ranking

PLAIN = os.environ.get("DUALPATH_PLAIN_PYTHON", "")
PROGRAM = """
import json, sys
from dualpath.policy import ranking
from dualpath.sim.run import run_scenario
from dualpath.sim.scenario import scenario_from
outcome = run_scenario(scenario_from(json.loads(sys.argv[1])))
assert len(outcome.records) > 0
print(ranking.__file__.endswith(".py"), outcome.trace_hash)
"""
SCENARIOS: dict[str, dict[str, Any]] = {
    "dual path": {"read_policy": "shorter-queue"},
    "basic": {"read_policy": "prefill-only", "prefill_policy": "round-robin", "layerwise": False},
    "any node": {"read_policy": "any-node", "model": "qwen2.5-32b", "topology": "1P2D"},
    "recompute": {"read_policy": "load-or-recompute", "retain_bytes": 20e9, "warm": True},
    "online, as our house hands over": {"read_policy": "split", "aps": 4.0, "handover": "pull"},
    "a node is lost": {"read_policy": "split", "faults": [{"node": "p1", "at_s": 5, "for_s": 20}]},
}

pytestmark = pytest.mark.skipif(not PLAIN, reason="the code is not compiled: make test-compiled")


def trace(python: str, scenario: dict[str, Any]) -> list[str]:
    """Whether the code is source, and the hash of all that happened."""
    whole = {"topology": "2P4D", "agents": 64, "turns": 6, **scenario}
    command = [python, "-c", PROGRAM, json.dumps(whole)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()


def test_this_is_compiled_code() -> None:
    assert not ranking.__file__.endswith(".py")


@pytest.mark.parametrize("name", SCENARIOS)
def test_compiled_code_gives_the_same_trace(name: str) -> None:
    of_source, plain = trace(PLAIN, SCENARIOS[name])
    compiled_is_source, compiled = trace(sys.executable, SCENARIOS[name])
    assert (of_source, compiled_is_source) == ("True", "False")
    assert compiled == plain
