"""A profile fitted to turns of a cluster whose constants are known."""

import random
from typing import Any

import pytest

from dualpath.bench.agents import Replayed, TurnRecord
from dualpath.bench.calibrate.fit import LEAST_TURNS, fit_profile
from dualpath.bench.counters import Cost, NodeSpent, Spent
from dualpath.bench.replay import Measured
from dualpath.core.config_file import load_config
from dualpath.core.errors import ServiceError
from dualpath.core.ids import NodeId
from dualpath.core.layout import BlockLayout
from dualpath.core.model import ModelSpec
from dualpath.core.report import Role
from dualpath.core.request import Timeline

LAYOUT = BlockLayout(model="m", n_layers=4, block_tokens=64, token_bytes=2048, dtype="float32")
SPEC = ModelSpec("m", "", LAYOUT, 1, 1, 2, 256, 1000, ())
CONFIG = load_config(None, {"storage": {"snic": "10MB/s"}})
MS = 1_000_000
CHUNK, TOKEN, PAIR = 9 * MS, 50_000, 60  # a prefill's computation
STEP, REQUEST = 2 * MS, 3 * MS  # a decode step
SUBMIT, LOAD, HANDOFF = 4 * MS, 2 * MS, 5 * MS


def turns(alone: int = 20, pairs: int = 10) -> list[TurnRecord]:
    """An agent's turns, each as soon as client and gateway allow; then pairs that decode for one and the same span."""
    rng = random.Random(5)
    found = [turn_of(0, turn, 1, rng.randrange(10, 40), rng) for turn in range(alone)]
    now_s = 0.0
    for turn in found:
        turn.ended_s = now_s = now_s + (SUBMIT + turn.timeline.finished_ns) / 1e9
    for pair in range(pairs):
        tokens = rng.randrange(10, 40)
        both = [turn_of(1 + 2 * pair + i, 0, 2, tokens, rng) for i in range(2)]
        now_s += 10
        for turn in both:
            turn.ended_s = now_s
        found += both
    return found


def turn_of(agent: int, turn: int, company: int, tokens: int, rng: random.Random) -> TurnRecord:
    cached, new, wait_ns = rng.randrange(100, 4000), rng.randrange(1, 300), rng.randrange(200 * MS)
    loaded_ns = rng.randrange(500 * MS)
    started_ns = loaded_ns + LOAD
    finished_ns = started_ns + CHUNK + TOKEN * new + PAIR * new * cached + PAIR * new * new // 2 + wait_ns
    decode_ns = finished_ns + HANDOFF
    timeline = Timeline(
        decode_side_loaded_ns=loaded_ns, prefill_started_ns=started_ns, prefill_finished_ns=finished_ns,
        decode_started_ns=decode_ns, finished_ns=decode_ns + (tokens - 1) * (STEP + REQUEST * company),
        decode_engine="d0/0", layer_wait_ns=wait_ns,
    )  # fmt: skip
    return TurnRecord(agent, turn, cached + new, cached, [0] * tokens, [], 0.1, 0.1, 0.1, 0.0, timeline)


def measured(found: list[TurnRecord]) -> Measured:
    def node(name: str, role: Role, read_bytes: int, busy_ns: int) -> NodeSpent:
        return NodeSpent(NodeId(name), role, read_bytes, 0, busy_ns, 0)

    nodes = [node("p0", Role.PREFILL, 19_000_000, 2 * 10**9), node("d0", Role.DECODE, 9_500_000, 10**9)]
    cost = Cost(Spent(nodes, 10**9, {}, {}), {}, [], {})
    run: Any = None
    return Measured(run, Replayed(1.0, [], found, []), cost)


def test_constants_are_found_again_and_waits_for_layers_are_no_computation() -> None:
    profile = fit_profile(CONFIG, SPEC, measured(turns()))
    attention = profile.times.attention
    assert attention.chunk_ns == pytest.approx(CHUNK, rel=0.01)
    assert attention.token_ns == pytest.approx(TOKEN, rel=0.01)
    assert attention.pair_ns == pytest.approx(PAIR, rel=0.01)
    assert profile.times.decode_base_ns == pytest.approx(STEP, rel=0.01)
    assert profile.times.decode_request_ns == pytest.approx(REQUEST, rel=0.01)
    assert (profile.load_ns, profile.handoff_ns) == (LOAD, HANDOFF)
    assert profile.submit_ns == pytest.approx(SUBMIT, abs=10)
    assert profile.snic_efficiency == pytest.approx(0.95)


def test_a_run_that_says_too_little_is_refused() -> None:
    with pytest.raises(ServiceError, match=f"give at least {LEAST_TURNS}"):
        fit_profile(CONFIG, SPEC, measured(turns()[: LEAST_TURNS - 1]))
