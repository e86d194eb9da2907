"""Single cases of the policies: the paper's figures, edges, and what each refuses."""

import math

import pytest

from dualpath.core.errors import ConfigError, RequestError, ServiceError
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import BlockRange
from dualpath.policy.batch import AttentionTime, PrefillWork, fill_batch, fit_attention_time
from dualpath.policy.bounds import ratio_bounds
from dualpath.policy.decode import choose_decode, choose_group
from dualpath.policy.limits import limits_from_rates
from dualpath.policy.loads import EngineLoad, NodeLoad, Pending, ReadChoice
from dualpath.policy.read import READ_POLICIES

P, D = NodeId("p0"), NodeId("d0")


def decode_load(i: int, tokens: int, free: int, requests: int = 0) -> EngineLoad:
    return EngineLoad(EngineId(f"d0/{i}"), requests, tokens, 0, free)


def test_paper_s_node_allows_one_seventh_to_seven_halves() -> None:
    bounds = ratio_bounds(gpus=8, snic_per_cnic=1, dram_bytes_per_s=500e9, snic_bytes_per_s=50e9)
    assert bounds.low == pytest.approx(1 / 7)
    assert bounds.low_set_by == ("prefill CNIC write",)
    assert bounds.high == pytest.approx(7 / 2)
    assert bounds.high_set_by == ("decode CNIC write", "decode DRAM")
    assert bounds.allow(1, 7) and bounds.allow(7, 2)
    assert not bounds.allow(1, 8) and not bounds.allow(4, 1)


def test_bounds_with_one_gpu_a_node_are_empty() -> None:
    bounds = ratio_bounds(gpus=1, snic_per_cnic=1, dram_bytes_per_s=500e9, snic_bytes_per_s=50e9)
    assert bounds.low == math.inf
    assert not bounds.allow(1, 1)


def test_slow_dram_sets_the_upper_bound() -> None:
    bounds = ratio_bounds(gpus=8, snic_per_cnic=1, dram_bytes_per_s=250, snic_bytes_per_s=50)
    assert (bounds.high, bounds.high_set_by) == (1.0, ("decode DRAM",))


def test_many_storage_nics_leave_the_decode_read_as_bound() -> None:
    bounds = ratio_bounds(gpus=8, snic_per_cnic=3, dram_bytes_per_s=10_000, snic_bytes_per_s=50)
    assert (bounds.high, bounds.high_set_by) == (pytest.approx(2 / 3), ("decode CNIC read",))


def test_bounds_refuse_a_node_without_bandwidth() -> None:
    with pytest.raises(ConfigError, match="positive"):
        ratio_bounds(gpus=8, snic_per_cnic=1, dram_bytes_per_s=0, snic_bytes_per_s=50)


def test_limits_are_three_and_five_seconds() -> None:
    limits = limits_from_rates(1000.0, 200.0)
    assert (limits.alpha_tokens, limits.beta_tokens) == (3000, 1000)


def test_limits_are_at_least_one_token_and_may_be_unlimited() -> None:
    limits = limits_from_rates(0.0, math.inf)
    assert limits.alpha_tokens == 1
    assert limits.beta_tokens > 10**18


@pytest.mark.parametrize("rate", [-1.0, math.nan])
def test_limits_refuse_what_is_no_rate(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        limits_from_rates(rate, 1.0)


def test_choose_group_passes_over_empty_nodes_and_refuses_none() -> None:
    assert choose_group({NodeId("d0"): [], NodeId("d1"): [decode_load(0, 9, 9)]}) == "d1"
    with pytest.raises(ServiceError, match="no decode engine"):
        choose_group({NodeId("d0"): []})


def test_choose_group_counts_private_queues() -> None:
    groups = {NodeId("d0"): [decode_load(0, 10, 0)], NodeId("d1"): [decode_load(0, 11, 0)]}
    assert choose_group(groups) == "d0"
    assert choose_group(groups, {NodeId("d0"): 2}) == "d1"


def test_request_that_fits_the_sum_but_no_engine_stops_the_queue() -> None:
    group = [decode_load(0, 0, 10), decode_load(1, 0, 10)]
    queue = [Pending(RequestId("large"), 15), Pending(RequestId("small"), 1)]
    assert choose_decode(group, queue) == []


def test_engine_exactly_at_z_counts_as_even() -> None:
    queue = [Pending(RequestId("r"), 1)]  # Z = 1.05 * 40 / 2 = 21
    group = [decode_load(0, 20, 100, requests=0), decode_load(1, 19, 100, requests=5)]
    assert choose_decode(group, queue)[0].engine == "d0/0"  # 20 + 1 <= Z: the fewest requests decide


def test_engine_above_z_comes_last() -> None:
    queue = [Pending(RequestId("r"), 1)]  # Z = 1.05 * 40 / 2 = 21
    group = [decode_load(0, 21, 100, requests=0), decode_load(1, 18, 100, requests=5)]
    assert choose_decode(group, queue)[0].engine == "d0/1"


def test_split_follows_the_rates() -> None:
    plan = READ_POLICIES["split"](ReadChoice(BlockRange(0, 30), NodeLoad(P, 0, 100.0), NodeLoad(D, 0, 200.0), 64, 0))
    assert (plan.blocks_by(P), plan.blocks_by(D)) == (10, 20)


def test_split_leaves_a_long_queue_alone() -> None:
    plan = READ_POLICIES["split"](ReadChoice(BlockRange(0, 3), NodeLoad(P, 10_000, 1.0), NodeLoad(D, 0, 1.0), 64, 0))
    assert plan.blocks_by(P) == 0


@pytest.mark.parametrize("rate", [0.0, math.inf, math.nan])
def test_split_takes_rates_as_equal_while_one_is_unknown(rate: float) -> None:
    plan = READ_POLICIES["split"](ReadChoice(BlockRange(0, 4), NodeLoad(P, 0, rate), NodeLoad(D, 0, 9.0), 64, 0))
    assert (plan.blocks_by(P), plan.blocks_by(D)) == (2, 2)


def test_first_request_advances_by_one_block_whatever_the_quota() -> None:
    model = AttentionTime(1000.0, 1.0, 1.0)
    chunks = fill_batch([PrefillWork(RequestId("r"), 128, 200)], model, 0, block_tokens=64, window_tokens=512)
    assert [(c.new_tokens, c.last) for c in chunks] == [(64, False)]


def test_prompt_larger_than_the_window_is_refused() -> None:
    model = AttentionTime(0.0, 1.0, 0.0)
    with pytest.raises(RequestError, match="prefill window"):
        fill_batch([PrefillWork(RequestId("r"), 64, 65)], model, 10, block_tokens=64, window_tokens=128)


def test_finished_work_is_no_work() -> None:
    with pytest.raises(ValueError, match="nothing to compute"):
        fill_batch(
            [PrefillWork(RequestId("r"), 64, 0)],
            AttentionTime(0.0, 1.0, 0.0),
            10,
            block_tokens=64,
            window_tokens=128,
        )


def test_attention_time_counts_pairs() -> None:
    assert AttentionTime(10.0, 2.0, 0.5).predict_ns(100, 4) == 10 + 8 + 0.5 * (400 + 8)


def test_fit_needs_samples_and_takes_the_fewest_terms() -> None:
    with pytest.raises(ConfigError, match="profile"):
        fit_attention_time([])
    fit = fit_attention_time([(0, 4, 80), (0, 4, 80)])
    assert (fit.chunk_ns, fit.token_ns, fit.pair_ns) == (80.0, 0.0, 0.0)
