"""One simulated run, from a scenario to everything that was recorded."""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import tokenizers

from dualpath.core.errors import ConfigError
from dualpath.core.ids import NodeId
from dualpath.core.report import Role
from dualpath.sim.agents import Agents, Records
from dualpath.sim.cluster import Cluster
from dualpath.sim.faults import schedule_faults
from dualpath.sim.kernel import Kernel
from dualpath.sim.perfetto import Recorder
from dualpath.sim.physics import Physics, physics_of
from dualpath.sim.scenario import Scenario
from dualpath.sim.series import Sampler, Series
from dualpath.sim.shape import Demand, shape_of
from dualpath.workload import PRESETS, Session, cut, first_turns, poisson_starts, read_workload, shrink
from dualpath.workload.lengths import SessionLengths, generated_lengths, session_lengths, shortened

_VOCAB = 2**17  # of traces whose contents do not matter here
_RARELY = (100_000, 20, 100)  # objects, and collections of younger ones, between collections


class NodeTotals(msgspec.Struct, frozen=True):
    """One node's part of a run."""

    node: NodeId
    role: Role
    read_bytes: int
    written_bytes: int
    read_busy_ns: int
    cnic_in_bytes: int
    cnic_out_bytes: int
    cnic_peak_bytes: int  # of its busiest NIC and direction


class Outcome(msgspec.Struct, kw_only=True):
    """A finished (or cut) run. `trace_hash` is equal for equal runs."""

    records: Records
    jct_s: float
    agent_s: list[float]
    nodes: list[NodeTotals]
    any_read_ns: int
    decisions: dict[str, int]
    recomputes: dict[str, int]
    series: Series
    snic_bytes_per_s: float
    cnic_bytes_per_s: float
    prefill_steps: int
    decode_steps: int
    decode_step_requests: int
    actions: int
    trace_hash: str
    unfinished: int  # requests that `until_s` cut off


def run_scenario(
    scenario: Scenario,
    *,
    physics: Physics | None = None,
    on_turn: Callable[[int], None] = lambda turns: None,
    until_s: float | None = None,
    sessions: Sequence[SessionLengths] | None = None,
    recorder: Recorder | None = None,
) -> Outcome:
    """Simulate until all agents are done, or up to `until_s`. ConfigError when the scenario cannot be run.

    `physics` and `sessions` are the scenario's unless given; `recorder` hears what happens to every request.
    """
    physics = physics or physics_of(scenario)
    sessions = sessions or load_lengths(scenario)
    starts_ns = [int(s * 1e9) for s in _starts_s(scenario)]
    kernel = Kernel(scenario.seed)
    agents = Agents(
        kernel, sessions, starts_ns, block_tokens=scenario.block_tokens,
        think=scenario.think or scenario.aps is not None, warm=scenario.warm,
        submit_ns=physics.submit_ns, reply_ns=physics.reply_ns, on_turn=on_turn,
    )  # fmt: skip
    shape = shape_of(scenario, physics, _demand(sessions))
    cluster = Cluster(kernel, physics, shape, agents.finished, agents.failed, recorder)
    sampler = Sampler(cluster)
    schedule_faults(cluster, scenario.faults)
    agents.start(cluster)
    with _rare_collections():
        kernel.run(None if until_s is None else int(until_s * 1e9))
    return _outcome(cluster, agents, sampler.series, starts_ns)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for unused circles hardly ever, as it walks over all that tens of thousands of agents have.

    Requests leave none; compiled code leaves a few small ones for each.
    """
    usual = gc.get_threshold()
    gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def load_lengths(scenario: Scenario) -> Sequence[SessionLengths]:
    """One session an agent; ConfigError when the workload has fewer, or one has no turn that fits."""
    sessions = _generated(scenario) if scenario.workload in PRESETS else _trace(scenario)
    empty = sum(len(session) == 0 for session in sessions)
    if empty:
        raise ConfigError(f"the first turn of {empty} sessions is longer than max_context; raise it, or shrink")
    return sessions


def _generated(scenario: Scenario) -> list[SessionLengths]:
    def session(agent: int) -> SessionLengths:
        whole = generated_lengths(scenario.workload, agent, scenario.seed, scenario.append_factor, scenario.gen_factor)
        return shortened(whole, turns=scenario.turns, shrink=scenario.shrink, max_context=scenario.max_context)

    return [session(agent) for agent in range(scenario.agents)]


def _trace(scenario: Scenario) -> list[SessionLengths]:
    file = Path(scenario.workload).expanduser()
    if not file.is_file():
        known = ", ".join(sorted(PRESETS))
        raise ConfigError(f"no workload {scenario.workload!r}: neither a file nor one of {known}")
    if scenario.append_factor != 1 or scenario.gen_factor != 1:
        raise ConfigError("append_factor and gen_factor scale generated agents, not a trace's; leave them out")
    sessions = read_workload(
        file, vocab=_VOCAB, seed=scenario.seed, limit_sessions=scenario.agents, tokenize=_tokenizer(scenario)
    )
    if len(sessions) < scenario.agents:
        raise ConfigError(f"{scenario.workload} has {len(sessions)} sessions; lower agents to that")
    return [session_lengths(_shorter(session, scenario), scenario.block_tokens) for session in sessions]


def _shorter(session: Session, scenario: Scenario) -> Session:
    if scenario.turns is not None:
        session = first_turns(session, scenario.turns)
    session = shrink(session, scenario.shrink)
    return session if scenario.max_context is None else cut(session, max_context=scenario.max_context)


def _tokenizer(scenario: Scenario) -> Callable[[str], list[int]]:
    if scenario.tokenizer is None:

        def refuse(text: str) -> list[int]:
            raise ConfigError("this trace holds text; name a tokenizer.json with tokenizer = ...")

        return refuse
    tokenizer = tokenizers.Tokenizer.from_file(scenario.tokenizer)
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _starts_s(scenario: Scenario) -> list[float]:
    if scenario.aps is None:
        return [0.0] * scenario.agents
    return poisson_starts(scenario.agents, scenario.aps, scenario.seed)


def _demand(sessions: Sequence[SessionLengths]) -> Demand:
    turns = sum(len(s.prompt) for s in sessions)
    prompt = sum(float(np.sum(s.prompt)) for s in sessions) / turns
    reuse = sum(float(np.sum(s.reuse)) for s in sessions) / turns
    longest = max(int(np.max(s.prompt + s.gen)) for s in sessions)
    return Demand(len(sessions), prompt, prompt - reuse, longest)


def _outcome(cluster: Cluster, agents: Agents, series: Series, starts_ns: Sequence[int]) -> Outcome:
    records, machine = agents.records, cluster.machine
    ends_s = [-math.inf] * len(starts_ns)
    for agent, ended_s in zip(records.agent, records.ended_s, strict=True):
        ends_s[agent] = max(ends_s[agent], ended_s)
    groups = {id(engine.group): engine.group for engine in cluster.prefills.values()}
    return Outcome(
        records=records, jct_s=max(ends_s), nodes=[_totals(cluster, name) for name in cluster.nodes],
        agent_s=[end - start / 1e9 for end, start in zip(ends_s, starts_ns, strict=True) if end > -math.inf],
        any_read_ns=machine.any_read_ns, decisions=dict(machine.decisions), recomputes=dict(machine.recomputes),
        series=series, snic_bytes_per_s=cluster.physics.snic_bytes_per_s,
        cnic_bytes_per_s=cluster.physics.cnic_bytes_per_s, prefill_steps=sum(g.steps for g in groups.values()),
        decode_steps=sum(g.steps for g in cluster.decode_groups),
        decode_step_requests=sum(g.step_requests for g in cluster.decode_groups),
        actions=cluster.kernel.actions_done, trace_hash=cluster.kernel.trace_hash, unfinished=len(cluster.asks),
    )  # fmt: skip


def _totals(cluster: Cluster, name: NodeId) -> NodeTotals:
    node = cluster.nodes[name]
    ins, outs = [c.into.bytes_moved for c in node.cnics], [c.out.bytes_moved for c in node.cnics]
    return NodeTotals(
        name, node.role, round(node.reads.bytes_moved), round(node.writes.bytes_moved), node.reads.busy_ns,
        round(sum(ins)), round(sum(outs)), round(max(ins + outs)),
    )  # fmt: skip
