"""How fast the live scheduler decides: its machine and prefix index, driven by requests of agents as in the paper.

    python -m dualpath.bench.scheduler_speed --nodes 48P96D --engines 8 --agents 48000

Nothing is simulated but the answers of nodes and engines, which come at once. The first figures are of a cluster that
has room, the second of one behind which tens of thousands of requests wait. Times are of one core, of everything that
the machine does for an event, look-up in the index included; messages are not part of it.
"""

import argparse
import gc
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from dualpath.core.config import parse_topology
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.keys import KEY_BYTES, BlockKey
from dualpath.core.report import Role
from dualpath.core.request import FinishReason
from dualpath.protocol import events as ev
from dualpath.protocol.machine import ClusterMachine, Settings
from dualpath.scheduler.index import PrefixIndex
from dualpath.scheduler.main import GC_THRESHOLD

BLOCK_TOKENS = 64
PROMPT_TOKENS = 30_000  # median; the paper's agents have 20K to 60K
APPEND_TOKENS = 600  # new in each turn
MAX_TOKENS = 300
READ_TOKENS_PER_S = 700_000.0  # of a node: 50 GB/s at 70 KB a token
PROCESS_TOKENS_PER_S = 50_000.0
NODE_SLOTS = 60_000
ENGINE_KV_TOKENS = 1_000_000


class Load(msgspec.Struct, frozen=True):
    """What the machine needs under one load."""

    waiting: int  # requests that wait, mean
    running: int
    requests: int  # finished
    decisions_per_s: float
    decision_p50_us: float  # one decision: the event that started an attempt, from its arrival to the drained Assign
    decision_p99_us: float
    decision_max_us: float
    request_us: float  # all events of a request
    events_per_request: float


class Speed(msgspec.Struct, frozen=True):
    """The result."""

    nodes: str
    engines: int
    agents: int
    room: Load
    queue: Load
    index_keys: int
    index_bytes_per_key: float
    look_up_us: float  # one request's, of which the decisions above hold one or more


class Agents:
    """Contexts of agents: lengths, and keys that are the same whenever they are asked for."""

    def __init__(self, count: int) -> None:
        tokens = np.random.default_rng(1).lognormal(np.log(PROMPT_TOKENS), 0.6, count)
        self.prompt_tokens = np.minimum(tokens, 200_000).astype(int).tolist()

    def keys(self, agent: int) -> tuple[BlockKey, ...]:
        """The chained keys of the agent's full blocks; random ones do as well."""
        blocks = self.prompt_tokens[agent] // BLOCK_TOKENS
        packed = np.random.default_rng(agent).bytes(blocks * KEY_BYTES)
        return tuple(packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES))

    def stored(self, agent: int) -> tuple[BlockKey, ...]:
        """Those that earlier turns have left on storage."""
        return self.keys(agent)[: -(APPEND_TOKENS // BLOCK_TOKENS)]


class Cluster:
    """The live machine with nodes that answer at once. Prefill and decode go on only when they are told to."""

    def __init__(self, nodes: tuple[int, int], engines: int, agents: Agents, index: PrefixIndex) -> None:
        self._agents = agents
        self._index = index
        self._keys: dict[RequestId, tuple[BlockKey, ...]] = {}
        self.machine = ClusterMachine(
            Settings(BLOCK_TOKENS, "least-tokens-short-queue", "split"),
            lambda request: index.look_up(self._keys[request]),
        )
        self._now_ns = 0
        self._answers: deque[ev.Event] = deque()
        self._prefilling: deque[int] = deque()
        self._decoding: deque[int] = deque()
        self.asked = self.finished = self.events = 0
        self.started_ns: list[int] = []  # of each decision
        self.busy_ns = 0
        for letter, role, count in (("p", Role.PREFILL, nodes[0]), ("d", Role.DECODE, nodes[1])):
            for number in range(count):
                self._join(NodeId(f"{letter}{number}"), role, engines)

    def _join(self, node: NodeId, role: Role, engines: int) -> None:
        self._tell(ev.NodeJoined(node, role, NODE_SLOTS, NODE_SLOTS // 8, READ_TOKENS_PER_S))
        for number in range(engines):
            engine = EngineId(f"{node}/{number}")
            self._tell(ev.EngineJoined(engine, ENGINE_KV_TOKENS, PROCESS_TOKENS_PER_S))

    def forget_figures(self) -> None:
        """Measure from now on."""
        self.finished = self.events = self.busy_ns = 0
        self.started_ns.clear()

    def ask(self) -> None:
        """The next agent asks its next turn."""
        agent = self.asked % len(self._agents.prompt_tokens)
        request = RequestId(f"r{self.asked}")
        self.asked += 1
        self._keys[request] = self._agents.keys(agent)
        self._tell(ev.RequestArrived(request, self._agents.prompt_tokens[agent], MAX_TOKENS))
        self._answer()

    def step(self) -> None:
        """One prompt is computed, and one generation ends."""
        self._now_ns += 1_000_000
        if self._prefilling:
            grant = self._prefilling.popleft()
            self._tell(ev.PrefillStarted(grant))
            self._tell(ev.PrefillFinished(grant, None))
        if self._decoding:
            self._tell(ev.DecodeFinished(self._decoding.popleft(), FinishReason.LENGTH, MAX_TOKENS))
        self._answer()

    def _answer(self) -> None:
        while self._answers:
            self._tell(self._answers.popleft())

    def _tell(self, event: ev.Event) -> None:
        start_ns = time.thread_time_ns()
        self.machine.receive(event, now_ns=self._now_ns)
        commands = self.machine.drain()
        taken_ns = time.thread_time_ns() - start_ns
        self.busy_ns += taken_ns
        self.events += 1
        decisions = 0
        for command in commands:
            decisions += isinstance(command, ev.Assign)
            self._answers.extend(self._carry_out(command))
        if decisions:
            self.started_ns += [taken_ns // decisions] * (decisions - 1) + [
                taken_ns - taken_ns // decisions * (decisions - 1)
            ]

    def _carry_out(self, command: ev.Command) -> Iterator[ev.Event]:
        match command:
            case ev.Assign():
                for node in (command.prefill.split("/")[0], command.decode.split("/")[0]):
                    blocks = command.plan.blocks_by(NodeId(node))
                    if blocks:
                        yield ev.ReadsAdvanced(command.grant, NodeId(node), blocks)
                    if blocks or node[0] == "d":
                        yield ev.ReadsFinished(command.grant, NodeId(node))
            case ev.StartPull():
                yield ev.CopyFinished(command.grant)
            case ev.StartPrefill():
                self._prefilling.append(command.grant)
            case ev.StartDecode():
                self._decoding.append(command.grant)
                yield ev.DecodeStarted(command.grant)
            case ev.Release():
                yield ev.Released(command.grant, command.node)
            case ev.FinishRequest():
                self.finished += 1
                del self._keys[command.request]
            case ev.FailRequest():
                raise SystemExit(f"a request failed: {command.message}")


def measure(cluster: Cluster, requests: int, waiting: int) -> Load:
    """Serve `requests` while `waiting` wait; with none, while two run for each engine."""
    machine = cluster.machine
    most = 2 * sum(len(node.engines) for node in machine.members.nodes.values())

    def fill() -> None:
        while len(machine.waiting) < waiting or (not waiting and len(machine.attempts) < most):
            cluster.ask()

    fill()
    gc.collect()
    cluster.forget_figures()
    while cluster.finished < requests:
        cluster.step()
        fill()
    started_us = np.array(cluster.started_ns) / 1e3
    p50, p99, highest = np.percentile(started_us, (50, 99, 100)).tolist()
    return Load(
        waiting=len(machine.waiting), running=len(machine.attempts), requests=cluster.finished,
        decisions_per_s=1e6 / float(started_us.mean()), decision_p50_us=p50, decision_p99_us=p99,
        decision_max_us=highest, request_us=cluster.busy_ns / 1e3 / len(started_us),
        events_per_request=cluster.events / len(started_us),
    )  # fmt: skip


def filled_index(agents: Agents, keys: int) -> PrefixIndex:
    """What the first agents left behind, up to so many keys."""
    index = PrefixIndex()
    for agent in range(len(agents.prompt_tokens)):
        if len(index) >= keys:
            break
        index.add_durable(agents.stored(agent))
        index.look_up(agents.stored(agent))  # as its last turn has
    return index


def look_up_us(agents: Agents, index: PrefixIndex) -> float:
    """Mean time of a look-up of a prompt that was looked up before."""
    prompts = [agents.keys(agent) for agent in range(min(200, len(agents.prompt_tokens)))]
    for prompt in prompts:
        index.look_up(prompt)
    start_ns = time.thread_time_ns()
    for prompt in prompts:
        index.look_up(prompt)
    return (time.thread_time_ns() - start_ns) / 1e3 / len(prompts)


def scheduler_speed(nodes: str, engines: int, agents: int, *, requests: int, waiting: int, keys: int) -> Speed:
    """Fill an index with the agents' blocks and measure both loads."""
    all_agents = Agents(agents)
    index = filled_index(all_agents, keys)
    room, queue = (
        measure(Cluster(parse_topology(nodes), engines, all_agents, index), requests, some) for some in (0, waiting)
    )
    return Speed(
        nodes, engines, agents, room, queue, len(index), index.nbytes() / max(1, len(index)),
        look_up_us(all_agents, index),
    )  # fmt: skip


def _print(speed: Speed) -> None:
    print(f"{speed.nodes}, {speed.engines} engines a node, {speed.agents} agents")
    for name, load in (("room", speed.room), ("queue", speed.queue)):
        print(
            f"  {name}: {load.waiting} wait, {load.running} run; {load.decisions_per_s:,.0f} decisions/s, "
            f"p50 {load.decision_p50_us:.0f}, p99 {load.decision_p99_us:.0f}, max {load.decision_max_us:.0f} us; "
            f"a request in all {load.request_us:.0f} us, {load.events_per_request:.1f} events"
        )
    print(
        f"  index: {speed.index_keys:,} keys, {speed.index_bytes_per_key:.1f} B each, look-up {speed.look_up_us:.1f} us"
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m dualpath.bench.scheduler_speed", description=__doc__)
    parser.add_argument("--nodes", default="48P96D", help="topology")
    parser.add_argument("--engines", type=int, default=8, help="engines of every node")
    parser.add_argument("--agents", type=int, default=48_000)
    parser.add_argument("--requests", type=int, default=5_000, help="requests to serve under each load")
    parser.add_argument("--waiting", type=int, default=36_000, help="requests that wait in the second load")
    parser.add_argument("--keys", type=int, default=4_200_000, help="keys in the index; all agents have 23 million")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    gc.set_threshold(*GC_THRESHOLD)
    speed = scheduler_speed(
        options.nodes, options.engines, options.agents,
        requests=options.requests, waiting=options.waiting, keys=options.keys,
    )  # fmt: skip
    _print(speed)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(speed), indent=2))


if __name__ == "__main__":
    main()
