"""More work never takes less time, better hardware never more."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.sim.engine_time import EngineTime
from dualpath.sim.facts import data_names
from dualpath.sim.hardware import load_hardware
from dualpath.sim.models import load_model

HOPPER = load_hardware("hopper")
ENGINES = {name: EngineTime(HOPPER, load_model(name), topology="2P4D") for name in data_names("models")}
RATES = ("hbm_bytes_per_s", "nvlink_bytes_per_s", "cnic_bytes_per_s", "gemm_efficiency", "attention_efficiency")

names = st.sampled_from(sorted(ENGINES))
tokens = st.integers(1, 100_000)
batches = st.lists(st.tuples(st.integers(0, 64), st.integers(1, 64_000)), min_size=1, max_size=32)


def prefill_ns(engine: EngineTime, cached: int, new: int, members: int = 16) -> int:
    return engine.prefill_step_ns([engine.attention.predict_ns(cached, new)] * members, [new] * members)


@settings(max_examples=60, deadline=None)
@given(names, tokens, tokens, tokens)
def test_prefill_grows_with_tokens_and_context(name, cached, new, more):
    engine = ENGINES[name]
    one = prefill_ns(engine, cached, new)
    assert 0 < one <= prefill_ns(engine, cached + more, new)
    assert one <= prefill_ns(engine, cached, new + more)


@settings(max_examples=60, deadline=None)
@given(names, batches, st.integers(1, 8), tokens)
def test_decode_grows_with_requests_and_context(name, batch, more, longer):
    engine = ENGINES[name]
    requests, contexts = [count for count, _ in batch], [count * each for count, each in batch]
    one = engine.decode_step_ns(requests, contexts)
    assert 0 < one <= engine.decode_step_ns(requests, [context + longer for context in contexts])
    assert one <= engine.decode_step_ns([count + more for count in requests], contexts)


@pytest.mark.parametrize("name", sorted(ENGINES))
@pytest.mark.parametrize("rate", RATES)
def test_better_hardware_is_never_slower(name, rate):
    better = msgspec.structs.replace(HOPPER, **{rate: getattr(HOPPER, rate) * 1.1})
    faster = EngineTime(better, load_model(name), topology="2P4D")
    for new in (16, 429, 8_192):
        assert prefill_ns(faster, 32_000, new) <= prefill_ns(ENGINES[name], 32_000, new)
    for batch in (1, 32):
        loads = [batch] * 32, [batch * 32_000] * 32
        assert faster.decode_step_ns(*loads) <= ENGINES[name].decode_step_ns(*loads)
