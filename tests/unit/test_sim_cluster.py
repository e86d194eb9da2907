"""Simulated clusters small enough to work out by hand, and what holds of every run."""

import math
import os
import subprocess
import sys
from statistics import mean

import pytest

from dualpath.bench.simulate import simulate
from dualpath.core.errors import ConfigError
from dualpath.policy.batch import AttentionTime
from dualpath.policy.prefill import PREFILL_POLICIES
from dualpath.policy.read import READ_POLICIES
from dualpath.sim.physics import Physics
from dualpath.sim.run import Outcome, run_scenario
from dualpath.sim.scenario import Fault, Scenario, check, scenario_from, system, system_of, with_changes

MS = 1_000_000
KV = 1000.0  # bytes a token


class Times:
    """Round numbers: a pass of 40 ms and 2 more a request, a decode step of 10 ms."""

    layers = 4
    prefill_group_engines = 1
    decode_group_engines = 1
    attention = AttentionTime(2 * MS, 0.0, 0.0)

    def __init__(self, window_tokens: int = 10**7, kv_tokens: int = 10**6) -> None:
        self._window_tokens = window_tokens
        self._kv_tokens = kv_tokens

    def prefill_step_ns(self, attention_ns: list[float], new_tokens: list[int]) -> int:
        return int(40 * MS + max(attention_ns))

    def decode_step_ns(self, requests: list[int], context_tokens: list[int]) -> int:
        return 10 * MS

    def prefill_window_tokens(self, layerwise: bool) -> int:
        return self._window_tokens

    def decode_kv_tokens(self) -> int:
        return self._kv_tokens


def physics(**fields: object) -> Physics:
    given = {
        "times": Times(), "kv_bytes_per_token": KV, "engines": 1, "snic_bytes_per_s": 10e6, "cnic_bytes_per_s": 1e9,
        "dram_bytes_per_s": math.inf, "buffer_bytes": 1e9, "submit_ns": MS, "reply_ns": MS,
    }  # fmt: skip
    return Physics(**(given | fields))  # type: ignore[arg-type]


def scenario(**fields: object) -> Scenario:
    given = {"workload": "paper-32k", "agents": 1, "turns": 1, "warm": True, "read_policy": "prefill-only"}
    return Scenario(**(given | fields))  # type: ignore[arg-type]


def run(physics_: Physics | None = None, **fields: object) -> Outcome:
    return run_scenario(scenario(**fields), physics=physics_ or physics())


def test_one_request_takes_the_sum_of_its_parts() -> None:
    outcome = run()
    records = outcome.records
    prompt, cached = records.prompt_tokens[0], records.cached_tokens[0]
    assert cached == (prompt - 1) // 64 * 64
    read_s = cached * KV / 10e6
    move_s = prompt * KV / 1e9  # the hit and the new tokens to the decode node, longer than the hit from the buffer
    pass_s = max(0.042, move_s)
    late_s = 0.042 / 4 if move_s > 0.042 else 0.0
    expected = 0.001 + read_s + pass_s + late_s
    assert records.ttft_s[0] == pytest.approx(expected + 0.001, rel=1e-4)
    enter_s = prompt * KV / 1e9
    assert records.ttst_s[0] == pytest.approx(enter_s + 0.010, rel=1e-4)
    assert records.tpot_s[0] == pytest.approx(0.010, rel=1e-4)


def test_a_pass_waits_for_its_last_transfer_and_one_more_layer() -> None:
    fast, slow = run(), run(physics(cnic_bytes_per_s=1e8))
    prompt = fast.records.prompt_tokens[0]
    moved_s = prompt * KV / 1e8
    assert moved_s > 0.042
    expected = 0.002 + fast.records.cached_tokens[0] * KV / 10e6 + moved_s + 0.042 / 4
    assert slow.records.ttft_s[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("policy", sorted(READ_POLICIES))
def test_every_read_policy_of_the_live_cluster_runs_and_conserves_bytes(policy: str) -> None:
    outcome = run(agents=6, turns=4, topology="2P2D", read_policy=policy)
    assert not outcome.records.errors
    assert len(outcome.records) == 24
    read = sum(node.read_bytes for node in outcome.nodes)
    if policy != "load-or-recompute":
        assert read == pytest.approx(sum(outcome.records.cached_tokens) * KV, rel=1e-6)


@pytest.mark.parametrize("policy", sorted(PREFILL_POLICIES))
def test_every_prefill_policy_runs(policy: str) -> None:
    outcome = run(agents=6, turns=3, topology="2P1D", prefill_policy=policy, warm=False)
    assert len(outcome.records) == 18


def test_a_saturated_storage_nic_bounds_the_job_from_below_and_almost_from_above() -> None:
    outcome = run(agents=16, turns=6)
    bound_s = sum(outcome.records.cached_tokens) * KV / 10e6
    assert bound_s <= outcome.jct_s <= 1.05 * bound_s
    assert outcome.any_read_ns / 1e9 == pytest.approx(outcome.jct_s, rel=0.05)


def test_both_paths_nearly_double_what_storage_bounds() -> None:
    one = run(agents=16, turns=6, read_policy="prefill-only")
    both = run(agents=16, turns=6, read_policy="split")
    assert 1.9 <= one.jct_s / both.jct_s <= 2.0


def test_more_bandwidth_is_never_slower() -> None:
    times = [run(physics(snic_bytes_per_s=rate), agents=8, turns=4).jct_s for rate in (5e6, 10e6, 20e6, 80e6)]
    assert times == sorted(times, reverse=True)


def test_oracle_moves_nothing_and_is_the_fastest() -> None:
    oracle = run(agents=8, turns=4, oracle=True)
    assert sum(node.read_bytes + node.cnic_in_bytes for node in oracle.nodes) == 0
    assert oracle.jct_s < run(agents=8, turns=4, read_policy="split").jct_s


def test_memory_for_one_request_at_a_time_holds_basic_up_but_not_layerwise_prefill() -> None:
    tight = physics(times=Times(window_tokens=12_000), snic_bytes_per_s=1e9, cnic_bytes_per_s=1e8)
    layerwise = run(tight, agents=8, turns=2, layerwise=True)
    basic = run(tight, agents=8, turns=2, layerwise=False)
    assert mean(basic.records.ttft_s) > 1.3 * mean(layerwise.records.ttft_s)


def test_our_hand_over_pulls_what_the_prefill_node_read() -> None:
    pulled = run(handover="pull", agents=2, turns=2)
    through = run(handover="layerwise", agents=2, turns=2)
    bytes_of = [{n.node: n.cnic_in_bytes for n in outcome.nodes}["d0"] for outcome in (pulled, through)]
    assert bytes_of[0] == pytest.approx(bytes_of[1], rel=1e-6)


def test_a_third_node_with_an_idle_nic_reads_for_a_pair() -> None:
    pair = run(agents=2, turns=4, topology="1P3D", read_policy="split")
    three = run(agents=2, turns=4, topology="1P3D", read_policy="any-node")
    assert three.decisions["read:relay"] > 0
    assert mean(three.records.ttft_s) < 0.8 * mean(pair.records.ttft_s)
    assert sum(n.read_bytes for n in three.nodes) == sum(n.read_bytes for n in pair.nodes)


def test_kept_blocks_are_not_read_again() -> None:
    read = run(agents=6, turns=4, topology="1P2D", read_policy="split")
    kept = run(agents=6, turns=4, topology="1P2D", read_policy="split", retain_bytes=1e9)
    some = run(agents=6, turns=4, topology="1P2D", read_policy="split", retain_bytes=8e6)
    bytes_of = [sum(node.read_bytes for node in outcome.nodes) for outcome in (kept, some, read)]
    first = [cached for cached, turn in zip(kept.records.cached_tokens, kept.records.turn, strict=True) if turn == 0]
    assert bytes_of[0] == pytest.approx(sum(first) * KV, rel=1e-6)
    assert bytes_of == sorted(set(bytes_of))
    assert kept.jct_s < some.jct_s < read.jct_s


def test_what_is_computed_sooner_than_read_is_not_read() -> None:
    slow = physics(snic_bytes_per_s=5e5)
    read, either = (run(slow, agents=4, turns=3, read_policy=p) for p in ("split", "load-or-recompute"))
    assert sum(n.read_bytes for n in either.nodes) < sum(n.read_bytes for n in read.nodes)
    assert either.jct_s < read.jct_s


def test_same_seed_same_trace_whatever_the_hash_seed() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/unit'); import test_sim_cluster as t;"
        "print(t.run(agents=5, turns=3, topology='2P2D', read_policy='split', seed=int(sys.argv[1])).trace_hash)"
    )
    hashes = [
        subprocess.run(
            [sys.executable, "-c", code, seed], env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for seed, hash_seed in (("3", "1"), ("3", "2"), ("4", "1"))
    ]  # fmt: skip
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("policy", ["split", "any-node"])
@pytest.mark.parametrize("node", ["p0", "d1"])
def test_a_lost_node_costs_time_and_no_request(node: str, policy: str) -> None:
    whole = run(agents=8, turns=5, topology="2P2D", read_policy=policy)
    faults = (Fault(node=node, at_s=whole.jct_s / 4),)
    broken = run(agents=8, turns=5, topology="2P2D", read_policy=policy, faults=faults)
    assert not broken.records.errors
    assert len(broken.records) == 40
    assert broken.recomputes["node lost"] > 0
    assert broken.jct_s > 1.05 * whole.jct_s
    back = (Fault(node=node, at_s=whole.jct_s / 4, for_s=whole.jct_s / 10),)
    mended = run(agents=8, turns=5, topology="2P2D", read_policy=policy, faults=back)
    assert len(mended.records) == 40
    assert mended.jct_s < broken.jct_s


def test_a_slow_storage_nic_is_read_around() -> None:
    slow = (Fault(node="p0", part="snic", at_s=0.0, factor=0.25),)
    one = run(agents=8, turns=4, read_policy="prefill-only", faults=slow)
    both = run(agents=8, turns=4, read_policy="shorter-queue", faults=slow)
    assert one.jct_s / both.jct_s > 3  # 5 with perfect balance: 0.25 + 1 to 0.25


def test_online_agents_start_over_time() -> None:
    outcome = run(agents=20, turns=2, aps=2.0)
    assert min(outcome.records.sent_s) < 5 < max(outcome.records.sent_s)


def test_an_overload_shows_in_the_latency_of_an_online_run() -> None:
    """A first turn reads 5.8 MB in the mean, so the storage NIC serves 1.73 agents a second."""

    def ttft_s(aps: float) -> float:
        found = simulate(scenario(agents=100, aps=aps), physics=physics()).ttft.mean_s
        assert found is not None
        return found

    assert ttft_s(0.8) < 1
    assert ttft_s(6.92) > 25, "the 75th agent asks after 11 s and is served after 43"


def test_until_cuts_a_run_off() -> None:
    outcome = run_scenario(scenario(agents=4, turns=50), physics=physics(), until_s=5.0)
    assert outcome.unfinished == 4
    assert max(outcome.records.ended_s) <= 5.0


def test_what_does_not_fit_is_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match="lower max_context"):
        run(physics(buffer_bytes=1e6), handover="pull")


@pytest.mark.parametrize(
    "wrong", [{"read_policy": "guess"}, {"agents": 0}, {"aps": -1.0}, {"topology": 3}, {"nonsense": 1}]
)
def test_wrong_values_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", ".")):
        scenario_from(wrong)


def test_values_are_changed_by_text() -> None:
    changed = with_changes(Scenario(), ["agents=512", "topology=2P4D", "oracle=true"])
    assert (changed.agents, changed.topology, changed.oracle) == (512, "2P4D", True)
    with pytest.raises(ConfigError, match="write name=value"):
        with_changes(Scenario(), ["agent=512"])


def test_systems_have_the_papers_meaning() -> None:
    basic = system(Scenario(), "basic")
    assert (basic.read_policy, basic.layerwise, basic.prefill_policy) == ("prefill-only", False, "round-robin")
    names = ["basic", "oracle", "split"]
    assert [system_of(system(Scenario(), name)) for name in names] == names
    check(basic)
