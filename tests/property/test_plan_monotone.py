"""The closed form agrees with the paper's bounds on P/D, and more of anything never serves less."""

import math

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dualpath.bench.plan import SYSTEMS, binding_of, capacities, predict
from dualpath.bench.plan_physics import bounds_of
from dualpath.bench.plan_work import Work
from dualpath.policy.batch import AttentionTime
from dualpath.sim.engine_time import MeasuredTime
from dualpath.sim.physics import Physics

rates = st.floats(1e6, 1e11)
counts = st.integers(1, 12)
works = st.builds(
    lambda context, share, gen: Work(context_tokens=context, new_tokens=share * context, gen_tokens=gen, turns=9),
    st.integers(100, 50_000), st.floats(0.001, 1), st.integers(1, 500),
)  # fmt: skip
times = st.builds(
    lambda token, pair, decode: MeasuredTime(
        layers=8, attention=AttentionTime(0.0, 0.0, pair), prefill_base_ns=1e5, prefill_token_ns=token,
        decode_base_ns=decode, decode_request_ns=decode / 10, decode_context_ns=0.01, window_tokens=60_000,
        kv_tokens=200_000,
    ),
    st.floats(1, 1e5), st.floats(0, 10), st.floats(1e4, 1e8),
)  # fmt: skip
nodes = st.builds(
    Physics, times=times, kv_bytes_per_token=st.sampled_from([1e3, 1e5]), engines=st.integers(1, 8),
    snic_bytes_per_s=rates, cnic_bytes_per_s=rates, dram_bytes_per_s=rates, buffer_bytes=st.just(1e9),
    storage_bytes_per_s=st.just(math.inf) | rates,
)  # fmt: skip


def per_s(physics: Physics, prefill: int, decode: int, system: str, work: Work, agents: int | None = None) -> float:
    return predict(physics, f"{prefill}P{decode}D", SYSTEMS[system], work, agents).requests_per_s


@settings(max_examples=300, deadline=None)
@given(nodes, counts, counts)
def test_only_storage_nics_bind_exactly_within_the_paper_s_bounds(physics: Physics, prefill: int, decode: int) -> None:
    """Where nearly all is cached and engines cost nothing: the assumptions of the paper's section 3."""
    physics = msgspec.structs.replace(physics, storage_bytes_per_s=math.inf)
    work = Work(context_tokens=1e9, new_tokens=1e-3, gen_tokens=1, turns=1)
    found = capacities(physics, f"{prefill}P{decode}D", SYSTEMS["split"], work)
    moves = {name: rate for name, rate in found.items() if "engines" not in name}
    bounds = bounds_of(physics)
    assert bounds is not None
    ratio = prefill / decode
    assume(all(abs(ratio - bound) > 1e-6 for bound in (bounds.low, bounds.high)))
    if 2 * physics.snic_bytes_per_s < 0.999 * physics.engines * physics.cnic_bytes_per_s:
        assert (binding_of(moves) == "all SNICs") == bounds.allow(prefill, decode)


@settings(max_examples=60, deadline=None)
@given(nodes, counts, counts, works, st.sampled_from(sorted(SYSTEMS)), st.none() | st.integers(1, 2000))
def test_faster_parts_never_serve_less(
    physics: Physics, prefill: int, decode: int, work: Work, system: str, agents: int | None
) -> None:
    before = per_s(physics, prefill, decode, system, work, agents)
    for name in ("snic_bytes_per_s", "cnic_bytes_per_s", "dram_bytes_per_s", "storage_bytes_per_s"):
        faster = msgspec.structs.replace(physics, **{name: 2 * getattr(physics, name)})
        assert per_s(faster, prefill, decode, system, work, agents) >= before * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(nodes, counts, counts, works)
def test_systems_in_order(physics: Physics, prefill: int, decode: int, work: Work) -> None:
    found = {name: per_s(physics, prefill, decode, name, work) for name in SYSTEMS}
    assert found["basic"] <= found["prefill-only"] * (1 + 1e-9)
    assert found["shorter-queue"] == found["split"] <= found["load-or-recompute"] * (1 + 1e-9)
    assert max(found[name] for name in found if name != "load-or-recompute") <= found["oracle"] * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(nodes, counts, counts, works, st.sampled_from(sorted(SYSTEMS)), st.integers(1, 2000))
def test_predictions_are_consistent(
    physics: Physics, prefill: int, decode: int, work: Work, system: str, agents: int
) -> None:
    found = predict(physics, f"{prefill}P{decode}D", SYSTEMS[system], work, agents)
    assume(found.requests_per_s)  # else it does not fit
    assert max(found.use.values()) <= 1 + 1e-9
    assert found.binding == "agents" or max(found.use.values()) == pytest.approx(1)
    assert found.ttft_s >= found.ttft_alone_s * (1 - 1e-9) > 0
    assert found.jct_s == pytest.approx(agents * work.turns / found.requests_per_s)
