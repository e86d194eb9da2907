"""From a scenario and the numbers it obeys to what the cluster's parts are given."""

import msgspec

from dualpath.core.config import parse_topology
from dualpath.core.errors import ConfigError
from dualpath.core.ids import NodeId
from dualpath.sim.physics import Physics
from dualpath.sim.prefill import NO_QUOTA_NS
from dualpath.sim.scenario import Scenario


class ClusterShape(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes, arenas and rules of one run."""

    prefill_nodes: list[NodeId]
    decode_nodes: list[NodeId]
    block_tokens: int
    prefill_slots: int
    decode_slots: int
    write_slots: int
    prefill_policy: str
    read_policy: str
    layerwise: bool
    handover: str
    oracle: bool
    quota_ns: int
    overtake_limit: int
    retain_blocks: int  # of each decode node
    process_tokens_per_s: float  # of a prefill engine, cached tokens included
    compute_tokens_per_s: float  # the same, new tokens only


class Demand(msgspec.Struct, frozen=True):
    """What the agents ask for, in sum: sizes everything that depends on it."""

    agents: int
    mean_prompt_tokens: float
    mean_new_tokens: float
    longest_request_tokens: int


def shape_of(scenario: Scenario, physics: Physics, demand: Demand) -> ClusterShape:
    """ConfigError when a request does not fit the cluster."""
    prefill, decode = parse_topology(scenario.topology)
    block_bytes = scenario.block_tokens * physics.kv_bytes_per_token
    prefill_slots = int(physics.buffer_bytes / block_bytes)
    decode_slots = prefill_slots
    if scenario.handover == "layerwise":
        # A decode node frees the buffer when a request enters its engine (paper section 2); the ledger knows one pool
        decode_slots += int(physics.engines * physics.times.decode_kv_tokens() / scenario.block_tokens)
    if scenario.oracle:  # memory does not bind it
        prefill_slots = decode_slots = demand.agents * (demand.longest_request_tokens // scenario.block_tokens + 2)
    quota_ns = int(scenario.attention_quota_ms * 1e6) or NO_QUOTA_NS
    requests_per_s = _prefills_per_s(physics, demand, quota_ns)
    shape = ClusterShape(
        prefill_nodes=[NodeId(f"p{i}") for i in range(prefill)],
        decode_nodes=[NodeId(f"d{i}") for i in range(decode)],
        block_tokens=scenario.block_tokens, prefill_slots=prefill_slots, decode_slots=decode_slots,
        write_slots=int(physics.write_share * prefill_slots), prefill_policy=scenario.prefill_policy,
        read_policy=scenario.read_policy, layerwise=scenario.layerwise, handover=scenario.handover,
        oracle=scenario.oracle, quota_ns=quota_ns,
        overtake_limit=scenario.overtake_limit, retain_blocks=int(scenario.retain_bytes / block_bytes),
        process_tokens_per_s=requests_per_s * demand.mean_prompt_tokens,
        compute_tokens_per_s=requests_per_s * demand.mean_new_tokens,
    )  # fmt: skip
    _check(shape, physics, demand)
    return shape


def _prefills_per_s(physics: Physics, demand: Demand, quota_ns: int) -> float:
    """Requests of one prefill engine whose whole group is as busy: what a live engine would report."""
    times = physics.times
    new = max(1, round(demand.mean_new_tokens))
    one_ns = times.attention.predict_ns(max(0, round(demand.mean_prompt_tokens) - new), new)
    requests = max(1, min(64, int(min(quota_ns, 300_000_000) / max(one_ns, 1))))
    group = times.prefill_group_engines
    step_ns = times.prefill_step_ns([requests * one_ns] * group, [requests * new] * group)
    return requests / (step_ns / 1e9)


def _check(shape: ClusterShape, physics: Physics, demand: Demand) -> None:
    times = physics.times
    rooms = {
        "a prefill node's buffer": shape.prefill_slots * shape.block_tokens,
        "a decode node's buffer": (shape.decode_slots - shape.write_slots) * shape.block_tokens,
        "a prefill engine's memory": times.prefill_window_tokens(shape.layerwise),
        "a decode engine's memory": times.decode_kv_tokens(),
    }
    for room, tokens in rooms.items():
        if tokens < demand.longest_request_tokens:
            raise ConfigError(
                f"the longest request has {demand.longest_request_tokens} tokens, {room} holds {tokens}; "
                "lower max_context or take other hardware"
            )
