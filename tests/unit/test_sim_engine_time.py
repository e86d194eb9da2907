"""Times of engines: what was published or follows from the paper's figures, groups, memory, measured times."""

import msgspec
import pytest

from dualpath.core.errors import ConfigError
from dualpath.policy.batch import AttentionTime
from dualpath.sim.engine_time import EngineTime, MeasuredTime
from dualpath.sim.hardware import load_hardware
from dualpath.sim.models import load_model

MS = 1e6
CACHED = 32_292
CONTEXT = 32_721


def times(model: str = "deepseek-v3.2", topology: str = "2P4D", hardware: str = "hopper") -> EngineTime:
    return EngineTime(load_hardware(hardware), load_model(model), topology=topology)


def prefill_ns(engine: EngineTime, new: int) -> int:
    """One request on every engine of the group."""
    group = engine.prefill_group_engines
    return engine.prefill_step_ns([engine.attention.predict_ns(CACHED, new)] * group, [new] * group)


def decode_ns(engine: EngineTime, batch: int, context: int = CONTEXT) -> int:
    group = engine.decode_group_engines
    return engine.decode_step_ns([batch] * group, [batch * context] * group)


def test_decode_step_of_the_660b_is_the_papers_time_a_token():
    for batch in (13, 16):  # 63 requests a second of 176 tokens on 32 GPUs
        assert 0.036 * 0.9 < decode_ns(times(), batch) / 1e9 < 0.039 * 1.1


def test_prefill_of_the_660b_leaves_room_for_the_papers_rate():
    """101 requests a second on 16 GPUs: at most 158 ms each."""
    assert 60 * MS < prefill_ns(times(), 429) < 150 * MS
    assert prefill_ns(times(), 121) < 0.6 * prefill_ns(times(), 429)


def test_decode_memory_of_the_660b_holds_the_papers_batches():
    assert 13 * CONTEXT < times().decode_kv_tokens() < 40 * CONTEXT


def test_deepseeks_published_service_is_met_within_a_third():
    """A node of 8 H800: 73.7K prompt tokens a second, 56.3% of them cached; 14.8K generated ones at 20..22 a user."""
    engine = times("deepseek-v3")
    step_ns = engine.prefill_step_ns([engine.attention.predict_ns(2_060, 1_600) * 5] * 16, [8_000] * 16)
    assert 8 * 8_000 / step_ns * 1e9 == pytest.approx(73_700 * (1 - 0.563), rel=0.34)
    assert 8 * 96 / decode_ns(engine, 96, 4_989) * 1e9 == pytest.approx(14_800, rel=0.34)
    assert 1e9 / decode_ns(engine, 96, 4_989) == pytest.approx(21, rel=0.34)


def test_a_pass_waits_for_its_slowest_member():
    engine = times()
    spent = engine.attention.predict_ns(CACHED, 429)
    even = engine.prefill_step_ns([spent] * 16, [429] * 16)
    uneven = engine.prefill_step_ns([spent] * 15 + [spent + 50 * MS], [429] * 16)
    assert uneven == even + 50 * MS


def test_idle_members_cost_nothing():
    engine = times()
    assert engine.decode_step_ns([4, 0], [4 * CONTEXT, 0]) < engine.decode_step_ns([4, 4], [4 * CONTEXT] * 2)
    assert engine.prefill_step_ns([MS], [100]) <= engine.prefill_step_ns([MS, MS], [100, 100])


@pytest.mark.parametrize(
    ("model", "topology", "prefill", "decode"),
    [
        ("deepseek-v3.2", "2P4D", 16, 32),
        ("deepseek-v3.2", "48P96D", 16, 32),
        ("deepseek-v3.2", "44P88D", 16, 32),
        ("deepseek-v3.2", "3P5D", 24, 40),  # one node is too small for the model: the fewest that suffice
        ("deepseek-27b", "1P1D", 8, 8),
        ("qwen2.5-32b", "1P2D", 8, 8),  # spread over a node, as KV needs the room
    ],
)
def test_engines_that_step_together(model, topology, prefill, decode):
    engine = times(model, topology)
    assert (engine.prefill_group_engines, engine.decode_group_engines) == (prefill, decode)


def test_a_small_dense_model_stays_whole():
    assert times("qwen2.5-32b", "1P1D", "cpu-server").prefill_group_engines == 1


def test_a_model_that_does_not_fit_is_refused_with_the_mend():
    with pytest.raises(ConfigError, match="more nodes"):
        times(topology="1P1D")


def test_layerwise_prefill_holds_half_the_layers_more():
    engine = times()
    assert engine.prefill_window_tokens(True) == pytest.approx(engine.prefill_window_tokens(False) * 61 / 2, rel=1e-3)


def test_a_sparse_choice_makes_long_contexts_cheap():
    sparse, dense = times("deepseek-v3.2"), times("deepseek-v3")
    assert sparse.attention.predict_ns(CACHED, 429) < 0.3 * dense.attention.predict_ns(CACHED, 429)
    assert sparse.attention.predict_ns(2 * CACHED, 429) < 1.6 * sparse.attention.predict_ns(CACHED, 429)


def test_windows_limit_decode():
    """Half of the layers read no more than their window."""
    engine = times("gpt-oss-120b", "1P1D")
    longer = decode_ns(engine, 16, 64_000) - decode_ns(engine, 16, 32_000)
    model = load_model("gpt-oss-120b")
    hardware = load_hardware("hopper")
    read_s = 16 * 32_000 * model.kv_bytes_per_token / 2 / (hardware.hbm_bytes_per_s * hardware.hbm_efficiency)
    assert longer / 1e9 == pytest.approx(read_s, rel=0.01)


def test_less_arithmetic_more_memory():
    hopper, h20 = times("qwen2.5-32b", "1P1D"), times("qwen2.5-32b", "1P1D", "h20")
    assert prefill_ns(h20, 2000) > prefill_ns(hopper, 2000)
    assert decode_ns(h20, 6) < decode_ns(hopper, 6)


MEASURED = MeasuredTime(
    layers=30, attention=AttentionTime(10.0, 2.0, 0.5), prefill_base_ns=1_000, prefill_token_ns=100,
    decode_base_ns=5_000, decode_request_ns=200, decode_context_ns=0.25, window_tokens=3_000, kv_tokens=65_536,
)  # fmt: skip


def test_measured_times_are_linear():
    assert MEASURED.prefill_step_ns([50.0, 20.0], [4, 10]) == 1_000 + 20 + 1_000
    assert MEASURED.decode_step_ns([3], [400]) == 5_000 + 600 + 100
    assert (MEASURED.prefill_window_tokens(True), MEASURED.prefill_window_tokens(False)) == (3_000, 200)
    assert (MEASURED.decode_kv_tokens(), MEASURED.prefill_group_engines, MEASURED.decode_group_engines) == (
        65_536,
        1,
        1,
    )


def test_measured_times_survive_a_file():
    assert msgspec.json.decode(msgspec.json.encode(MEASURED), type=MeasuredTime) == MEASURED


@pytest.mark.parametrize("wrong", [{"decode_base_ns": -1}, {"window_tokens": 0}, {"layers": 0}])
def test_measured_times_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="measure again"):
        msgspec.structs.replace(MEASURED, **wrong)
