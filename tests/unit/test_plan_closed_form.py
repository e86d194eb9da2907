"""The closed form by hand: nodes of round numbers, one resource at a time."""

import math

import msgspec
import pytest

from dualpath.bench.plan import SYSTEMS, Prediction, capacities, predict
from dualpath.bench.plan_answer import BOTH_PATHS, ONE_PATH, make_plan
from dualpath.bench.plan_work import Work, work_of_numbers, work_of_workload
from dualpath.core.errors import ConfigError
from dualpath.policy.batch import AttentionTime
from dualpath.sim.engine_time import MeasuredTime
from dualpath.sim.physics import Physics

TIMES = MeasuredTime(
    layers=10, attention=AttentionTime(0.0, 0.0, 0.0), prefill_base_ns=0.0, prefill_token_ns=1000.0,
    decode_base_ns=1e6, decode_request_ns=0.0, decode_context_ns=0.0, window_tokens=10_000, kv_tokens=11_000,
)  # fmt: skip
NODE = Physics(
    times=TIMES, kv_bytes_per_token=1000, engines=2, snic_bytes_per_s=1e6, cnic_bytes_per_s=100e6,
    dram_bytes_per_s=1e9, buffer_bytes=1e9,
)  # fmt: skip
WORK = Work(context_tokens=1000, new_tokens=100, gen_tokens=101, turns=10)  # 900 KB to read


def on(topology: str, system: str, work: Work = WORK, agents: int | None = None, **changes: object) -> Prediction:
    return predict(msgspec.structs.replace(NODE, **changes), topology, SYSTEMS[system], work, agents)


def test_storage_nics_bind_and_both_paths_add_them() -> None:
    one, both = on("1P2D", ONE_PATH), on("1P2D", BOTH_PATHS)
    assert (one.binding, both.binding) == ("prefill SNICs", "all SNICs")
    assert one.requests_per_s == pytest.approx(1e6 / 900e3)
    assert both.requests_per_s == pytest.approx(3e6 / 900e3)
    assert on("1P2D", "round-robin").requests_per_s == pytest.approx(2e6 / 900e3)
    assert on("1P1D", BOTH_PATHS).requests_per_s == pytest.approx(on("2P1D", ONE_PATH).requests_per_s)


def test_engines_are_counted_by_hand() -> None:
    rates = capacities(NODE, "1P2D", SYSTEMS["oracle"], WORK)
    assert rates["prefill engines"] == pytest.approx(2 * 1e9 / (100 * 1000))  # 100 new tokens, 1 us each
    # 9 requests of 1101 tokens fit an engine; 100 steps of 1 ms each
    assert rates["decode engines"] == pytest.approx(4 * 9 / 0.1)
    few = capacities(NODE, "1P2D", SYSTEMS["oracle"], WORK, agents=8)
    assert few["decode engines"] == pytest.approx(4 * 2 / 0.1)


def test_times_of_a_request_alone() -> None:
    """900 KB to read, 9 ms to the engine behind a prefill of 0.1 ms."""
    assert on("1P1D", ONE_PATH).ttft_alone_s == pytest.approx(0.9 + 0.009)
    assert on("1P1D", "shorter-queue").ttft_alone_s == pytest.approx(0.9 + 0.009)
    assert on("1P1D", BOTH_PATHS).ttft_alone_s == pytest.approx(0.45 + 0.009)
    assert on("1P1D", "basic").ttft_alone_s == pytest.approx(0.9 + 0.009 + 0.0001)
    assert on("1P1D", "oracle").ttft_alone_s == pytest.approx(0.0001)


def test_a_closed_loop_of_agents() -> None:
    alone = on("1P1D", ONE_PATH, agents=1)
    rest_s = 0.01 + 0.1  # to the decode engine, and 100 steps
    assert alone.binding == "agents"
    assert alone.requests_per_s == pytest.approx(1 / (0.909 + rest_s))
    assert (alone.ttft_s, alone.tpot_s) == (pytest.approx(0.909), pytest.approx(0.001))
    many = on("1P1D", ONE_PATH, agents=100)
    assert many.binding == "prefill SNICs"
    assert many.ttft_s == pytest.approx(100 * 0.9 - rest_s)  # all wait for one NIC
    assert many.jct_s == pytest.approx(100 * 10 * 0.9)


def test_recomputing_balances_engines_and_storage() -> None:
    slow = msgspec.structs.replace(TIMES, prefill_token_ns=1e6)
    split, mixed = on("1P1D", BOTH_PATHS, times=slow), on("1P1D", "load-or-recompute", times=slow)
    assert mixed.requests_per_s > 1.2 * split.requests_per_s
    assert 0 < mixed.read_share < 1
    assert on("1P1D", "load-or-recompute", snic_bytes_per_s=1e9).read_share == 1


def verdict(topology: str = "1P1D", work: Work = WORK, **changes: object) -> tuple[bool, str]:
    physics = msgspec.structs.replace(NODE, **changes)
    plan = make_plan(lambda _: physics, [topology], work, None)
    return plan.helps, " ".join(plan.answer)


def test_both_paths_help_where_storage_nics_bind() -> None:
    helps, text = verdict()
    assert helps
    assert text.startswith("Yes: on 1P1D both paths serve 2.00 times")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"times": msgspec.structs.replace(TIMES, prefill_token_ns=1e9)}, "prefill engines' computation binds"),
        ({"times": msgspec.structs.replace(TIMES, decode_base_ns=1e12)}, "decode engines' computation and KV memory"),
        ({"storage_bytes_per_s": 0.5e6}, "storage as a whole binds"),
        ({"storage_bytes_per_s": 1e6}, "with both paths storage as a whole binds at the same rate"),
        ({"dram_bytes_per_s": 1e6}, "decode nodes' DRAM binds"),
    ],
)
def test_both_paths_do_not_help_where_something_else_binds(changes: dict[str, object], words: str) -> None:
    helps, text = verdict(**changes)
    assert not helps
    assert text.startswith("No: ") and words in text


def test_nothing_reused_and_a_single_node() -> None:
    helps, text = verdict(work=work_of_numbers(1000, 400, 100, 1, 64))
    assert not helps and "nothing is read from storage" in text
    plan = make_plan(lambda _: NODE, [], WORK, None)
    assert not plan.helps and "one node has one storage NIC" in plan.answer[0]


def test_the_best_of_all_ratios() -> None:
    decode_bound = msgspec.structs.replace(TIMES, decode_base_ns=200e6)  # 2 engines * 9 requests / 20 s = 0.9 a node
    physics = msgspec.structs.replace(NODE, times=decode_bound)
    plan = make_plan(lambda _: physics, ["1P3D", "2P2D", "3P1D"], WORK, None)
    rates = {row.topology: row.of(BOTH_PATHS).requests_per_s for row in plan.rows}
    assert plan.best == "1P3D"
    assert rates == {"1P3D": pytest.approx(2.7), "2P2D": pytest.approx(1.8), "3P1D": pytest.approx(0.9)}


def test_what_does_not_fit_is_said() -> None:
    def make(topology: str) -> Physics:
        if topology == "1P2D":
            raise ConfigError("too large")
        return NODE

    plan = make_plan(make, ["1P2D", "2P1D"], WORK, None)
    assert [row.error for row in plan.rows] == ["too large", ""]
    assert plan.best == "2P1D"
    with pytest.raises(ConfigError, match="too large"):
        make_plan(make, ["1P2D"], WORK, None)
    long = msgspec.structs.replace(WORK, context_tokens=20_000)
    with pytest.raises(ConfigError, match=r"20,000 tokens fits no engine"):
        make_plan(make, ["2P1D"], long, None)


def test_work_of_numbers() -> None:
    work = work_of_numbers(32_700, 429, 176, 157, 1)
    assert work.new_tokens == pytest.approx(429)
    assert work.hit_rate == pytest.approx(0.987, abs=0.0005)  # the paper's
    assert work_of_numbers(32_700, 429, 176, 157, 64).new_tokens == pytest.approx(429 + 156 / 157 * 31.5)
    assert work_of_numbers(1000, 10, 10, 1, 64).hit_tokens == 0
    # 11 turns that grow by 100: the first prompt has 500 tokens, the mean one 1000
    assert work_of_numbers(1000, 60, 40, 11, 1).new_tokens == pytest.approx((500 + 10 * 60) / 11)
    assert work_of_workload("paper-64k", 64).context_tokens == 32_721


@pytest.mark.parametrize(
    "numbers", [(0, 1, 1, 1), (10, 11, 1, 2), (10, 0, 1, 2), (10, 1, 0, 2), (10, 1, 1, 0), (math.nan, 1, 1, 2)]
)
def test_impossible_numbers(numbers: tuple[float, float, float, float]) -> None:
    with pytest.raises(ConfigError, match=r"give positive numbers|a positive number of tokens"):
        work_of_numbers(*numbers, 64)
    with pytest.raises(ConfigError, match="neither a file nor one of"):
        work_of_workload("paper-65k", 64)
