"""What a cluster can do at best: requests a second by system, and what binds it. Closed forms, no simulation.

Each resource gives so many requests a second if a request's share of work is spread evenly over it; the least of
them is the cluster's. Bytes of a request follow the paper's section 2, counted as its section 3 counts them: its bounds
on P/D are what these figures show too. See docs/design/plan.md.
"""

import math
from collections.abc import Iterator

import msgspec

from dualpath.bench.plan_compute import decode_per_s, decode_step_s, prefill_per_s, prefill_s
from dualpath.bench.plan_work import Work
from dualpath.core.config import parse_topology
from dualpath.sim.physics import Physics

_PARTS = 32  # load-or-recompute leaves out whole parts of a hit

SNICS = ("prefill SNICs", "decode SNICs")
ALL_SNICS = "all SNICs"
_CLOSE = 1 + 1e-9


class System(msgspec.Struct, frozen=True):
    """How a hit gets to the engines."""

    name: str
    both_read: bool = True  # decode nodes too
    even: bool = False  # half of the hits each side, whatever the number of nodes
    split_read: bool = False  # both nodes of one request at the same time
    recompute: bool = False
    layerwise: bool = True
    free: bool = False  # the Oracle: no bytes move


SYSTEMS = {
    system.name: system
    for system in (
        System("basic", both_read=False, layerwise=False),
        System("prefill-only", both_read=False),
        System("round-robin", even=True),
        System("shorter-queue"),
        System("split", split_read=True),
        System("load-or-recompute", split_read=True, recompute=True),
        System("oracle", free=True),
    )
}


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One system on one cluster. Times are means; with agents, those of a closed loop of so many."""

    topology: str
    system: str
    requests_per_s: float  # 0 if a prompt does not fit the engines' memory
    binding: str  # what is used up at that rate; "agents" if nothing is
    use: dict[str, float]  # share of each resource that is used, 1 for the binding one
    ttft_s: float
    tpot_s: float
    ttft_alone_s: float  # of a request that waits for nobody
    jct_s: float | None  # of all agents together; without agents None
    read_share: float  # of the hit that is read, not computed again


class SimulatedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One system on one topology, beside its closed form."""

    topology: str
    system: str
    requests_per_s: float
    jct_s: float
    ttft_mean_s: float | None
    tpot_mean_s: float | None
    predicted_requests_per_s: float


def predict(physics: Physics, topology: str, system: System, work: Work, agents: int | None = None) -> Prediction:
    """The best that the system can do there, or what so many agents without pauses get."""
    return max(
        (_predict(physics, topology, system, work, agents, share) for share in _read_shares(system, work)),
        key=lambda prediction: (round(prediction.requests_per_s, 9), prediction.read_share),
    )


def _read_shares(system: System, work: Work) -> Iterator[float]:
    least = 0 if system.recompute and work.hit_tokens else _PARTS
    return (part / _PARTS for part in range(least, _PARTS + 1))


def _predict(
    physics: Physics, topology: str, system: System, work: Work, agents: int | None, share: float
) -> Prediction:
    work = msgspec.structs.replace(work, new_tokens=work.context_tokens - share * work.hit_tokens)
    rates = capacities(physics, topology, system, work, agents)
    per_s, binding = min(rates.values()), binding_of(rates)
    alone_s = _first_token_s(physics, system, work)
    tpot_s = decode_step_s(physics.times, _decode_engines(physics, topology), work, per_s, agents)
    rest_s = work.context_tokens * physics.kv_bytes_per_token / physics.cnic_bytes_per_s if not system.free else 0.0
    rest_s += (work.gen_tokens - 1) * tpot_s
    ttft_s = alone_s
    if agents is not None and per_s:
        if agents / (alone_s + rest_s) < per_s:
            per_s, binding = agents / (alone_s + rest_s), "agents"
        ttft_s = max(alone_s, agents / per_s - rest_s)
    return Prediction(
        topology=topology, system=system.name, requests_per_s=per_s, binding=binding,
        use={name: per_s / rate for name, rate in rates.items() if 0 < rate < math.inf},
        ttft_s=ttft_s, tpot_s=tpot_s, ttft_alone_s=alone_s,
        jct_s=agents * work.turns / per_s if agents and per_s else None, read_share=share,
    )  # fmt: skip


def binding_of(rates: dict[str, float]) -> str:
    """The resource that gives least; of equal ones the storage NICs, which both paths are about."""
    least = [name for name, rate in rates.items() if rate <= min(rates.values()) * _CLOSE]
    if all(name in least for name in SNICS):
        return ALL_SNICS
    return min(least, key=lambda name: name not in SNICS)


def capacities(
    physics: Physics, topology: str, system: System, work: Work, agents: int | None = None
) -> dict[str, float]:
    """Requests a second that each resource allows; inf for what is not used."""
    prefill, decode = parse_topology(topology)
    window_tokens = physics.times.prefill_window_tokens(system.layerwise)
    compute = {
        "prefill engines": prefill_per_s(physics.times, prefill * physics.engines, work, window_tokens, agents),
        "decode engines": decode_per_s(physics.times, decode * physics.engines, work, agents),
    }
    if system.free:
        return compute
    needs = _request_bytes(physics, prefill, decode, system, work)
    nics, cnics = physics.snic_bytes_per_s, physics.engines * physics.cnic_bytes_per_s
    offers = {
        "prefill SNICs": prefill * nics, "decode SNICs": decode * nics, "decode SNICs, writing": decode * nics,
        "storage": physics.storage_bytes_per_s,
        "prefill CNIC read": prefill * cnics, "prefill CNIC write": prefill * cnics,
        "decode CNIC read": decode * cnics, "decode CNIC write": decode * cnics,
        "prefill DRAM": prefill * physics.dram_bytes_per_s, "decode DRAM": decode * physics.dram_bytes_per_s,
    }  # fmt: skip
    return {name: offers[name] / need if need else math.inf for name, need in needs.items()} | compute


def _request_bytes(physics: Physics, prefill: int, decode: int, system: System, work: Work) -> dict[str, float]:
    """Of one request, over each resource (paper section 2; "read" and "write" as in section 3, of the node's DRAM).

    Balanced queues make every storage NIC read as much as any other.
    """
    token = physics.kv_bytes_per_token
    hit, new, gen, prompt = (
        n * token for n in (work.hit_tokens, work.new_tokens, work.gen_tokens, work.context_tokens)
    )
    share = 0.5 if system.even else prefill / (prefill + decode) if system.both_read else 1.0
    by_prefill, by_decode = share * hit, (1 - share) * hit
    return {
        "prefill SNICs": by_prefill,
        "decode SNICs": by_decode,
        "decode SNICs, writing": new + gen,
        "storage": hit,
        "prefill CNIC read": 2 * by_prefill + new,  # to the engine, and with what is new to the decode node
        "prefill CNIC write": hit,
        "decode CNIC read": by_decode + prompt,  # to the prefill engine; at the end to the decode engine
        "decode CNIC write": by_prefill + new + prompt + gen,
        "prefill DRAM": 2 * by_prefill,
        "decode DRAM": 2 * by_decode + by_prefill + 2 * new + prompt + 2 * gen,
    }


def _first_token_s(physics: Physics, system: System, work: Work) -> float:
    """Of a request alone: read, then compute; layer by layer the way to the engine is hidden behind that."""
    compute_s = prefill_s(physics.times, work)
    if system.free:
        return compute_s
    size = work.hit_tokens * physics.kv_bytes_per_token
    read_s = size / physics.snic_bytes_per_s / (2 if system.split_read else 1)
    load_s = size / physics.cnic_bytes_per_s
    return read_s + (max(load_s, compute_s) if system.layerwise else load_s + compute_s)


def _decode_engines(physics: Physics, topology: str) -> int:
    return parse_topology(topology)[1] * physics.engines
