"""The cluster machine against a fake cluster in virtual time: reads, copies, pushes, crashes, rejoins, cancels.

One seed decides everything. The fake agents keep their own books of who reads and writes which slot, and of what lies
in it, so that a slot given away too early shows as a collision or as wrong content. A failure prints its seed; replay
it with DUALPATH_SEED=n. Deliberately planted bugs show that the simulation would find them.
"""

import heapq
import os
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field

import pytest

from dualpath.core.report import Role
from dualpath.core.request import FinishReason
from dualpath.core.runs import Runs
from dualpath.protocol import events as ev
from dualpath.protocol.ledger import SlotLedger
from dualpath.protocol.machine import ClusterMachine, Hit, Settings
from dualpath.protocol.request import Attempt

BLOCK = 4
SECOND = 1_000_000_000
LIMIT = 3
SEEDS = [int(os.environ["DUALPATH_SEED"])] if "DUALPATH_SEED" in os.environ else list(range(16))
Work = Generator[float, None, None]
Key = tuple[int, int]  # session, block


@dataclass
class Arena:
    """One life of a node's memory: who owns, uses and filled each slot."""

    slots: int
    owner: dict[int, int] = field(default_factory=dict)  # slot -> grant
    writers: Counter = field(default_factory=Counter)  # and readers on the node itself
    readers: list[tuple[int, "Node"]] = field(default_factory=list)  # from other nodes
    content: dict[int, Key | None] = field(default_factory=dict)

    def begin(self, slots: Iterable[int], grant: int, reader: "Node | None" = None) -> None:
        for slot in slots:
            assert self.owner[slot] == grant, f"grant {grant} uses slot {slot} of grant {self.owner[slot]}"
            if reader:
                self.readers.append((slot, reader))
            else:
                self.writers[slot] += 1

    def end(self, slots: Iterable[int], reader: "Node | None" = None) -> None:
        for slot in slots:
            if reader:
                self.readers.remove((slot, reader))
            else:
                self.writers[slot] -= 1

    def in_use(self) -> set[int]:
        """A lost node that reads on does no harm: what it reads ends with it."""
        return {s for s, n in self.writers.items() if n} | {s for s, reader in self.readers if reader.known}


@dataclass(eq=False)
class Task:
    """Something that an agent or engine does for a grant (0: a write-back)."""

    node: "Node"
    grant: int
    work: Work
    of_engine: str = ""
    over: bool = False

    def stop(self) -> None:
        if not self.over:
            self.over = True
            self.work.close()


@dataclass(eq=False)
class Node:
    """A fake agent."""

    name: str
    role: Role
    arena: Arena
    engines: list[str]
    life: int = 0
    up: bool = True  # carries out and answers
    known: bool = True  # joined, and not silent since
    sent_until: float = 0.0
    told_until: float = 0.0
    assigned: int = 0  # grants opened by the scheduler, and those that the agent has seen
    opened: int = 0
    reads_queued: int = 0
    tasks: list[Task] = field(default_factory=list)
    grants: dict[int, ev.Assign] = field(default_factory=dict)


@dataclass
class Client:
    """A request: `blocks` full blocks of a session and a tail."""

    name: str
    session: int
    prompt_tokens: int
    max_tokens: int
    ends: list[str] = field(default_factory=list)


class Cluster:
    """The fake cluster, its driver, and the checks."""

    def __init__(self, seed: int, *, prefill: int = 2, decode: int = 2, faults: float = 1.0, slots: int = 24) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.faults = faults
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self.clients: dict[str, Client] = {}
        self.assigns: dict[int, ev.Assign] = {}
        self.order: list[str] = []  # of assignments
        self.durable: set[Key] = set()
        self.held: dict[Key, tuple[str, int, int]] = {}
        read_policy = self.rng.choice(["prefill-only", "round-robin", "shorter-queue", "split", "any-node", "any-node"])
        settings = Settings(
            BLOCK, "least-tokens-short-queue", read_policy, overtake_limit=LIMIT, lease_ns=SECOND,
            stage_deadline_ns=20 * SECOND, release_deadline_ns=3 * SECOND, waiting_deadline_ns=300 * SECOND,
            first_grant=1000 * seed + 1,
        )  # fmt: skip
        self.machine = ClusterMachine(settings, self._look_up)
        self.nodes: dict[str, Node] = {}
        roles = [("p", Role.PREFILL, prefill), ("d", Role.DECODE, decode)]
        for name, role in [(f"{letter}{i}", role) for letter, role, count in roles for i in range(count)]:
            engines = [f"{name}/{i}" for i in range(self.rng.choice([1, 2]))]
            self.nodes[name] = Node(name, role, Arena(slots), engines)
            self.join(self.nodes[name])
            self._beat(self.nodes[name])
        self._tick()

    # time

    def after(self, delay: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.now + delay, self._sequence, action))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        while self._events and self._events[0][0] <= until and not done():
            self.now, _, action = heapq.heappop(self._events)
            action()

    def _tick(self) -> None:
        due = self.machine.next_timeout_ns()
        if due is not None and due <= self._now_ns:
            for node in self.machine.members.expired(self._now_ns):
                self._forget(node)
            self.machine.on_timeout(now_ns=self._now_ns)
            self._carry_out()
        self.after(0.05, self._tick)

    @property
    def _now_ns(self) -> int:
        return int(self.now * SECOND)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p * self.faults

    # the driver: events in, commands out, and the prefix index

    def feed(self, event: ev.Event) -> None:
        self.machine.receive(event, now_ns=self._now_ns)
        self._carry_out()

    def _carry_out(self) -> None:
        self.machine.check()
        assert all(w.overtaken <= LIMIT for w in self.machine.waiting), "passed too often"
        for member in self.machine.members.nodes.values():
            used = self.nodes[member.node].arena.in_use()
            assert not any(map(member.ledger.is_free, used)), f"slots of {member.node} are free while they are in use"
        for command in self.machine.drain():
            getattr(self, f"_do_{type(command).__name__}")(command)

    def _look_up(self, request: str) -> Hit:
        client = self.clients[request]
        retained = []
        for block in range(client.prompt_tokens // BLOCK):
            key = (client.session, block)
            if key not in self.durable:
                if key not in self.held:
                    return Hit(block, tuple(retained))
                retained.append(ev.RetainedBlock(block, *self.held[key]))
        return Hit(client.prompt_tokens // BLOCK, tuple(retained))

    def _forget(self, node: str) -> None:
        self.nodes[node].known = False
        # sometimes the index is stale: a hint may be wrong
        if not self.chance(0.3):
            self.held = {k: h for k, h in self.held.items() if h[0] != node}

    def _do_Assign(self, c: ev.Assign) -> None:
        client = self.clients[c.request]
        assert not client.ends, "a request that has ended starts again"
        planned = [b for s in c.plan.segments for b in range(s.blocks.start, s.blocks.stop)]
        assert sorted(planned + [r.block for r in c.retained]) == list(range(c.hit_blocks)), "hit not covered once"
        assert len(c.decode_slots) == -(-(client.prompt_tokens + client.max_tokens) // BLOCK)
        for node in self._nodes(c):
            slots = list(self._slots(node, c).values())
            assert node.arena.in_use().isdisjoint(slots), f"slots of {node.name} are given away while they are in use"
            for slot in slots:
                node.arena.owner[slot], node.arena.content[slot] = c.grant, None
            node.assigned += 1
        self.assigns[c.grant] = c
        self.order.append(c.request)
        for node in self._nodes(c):
            self.tell(node, lambda node=node: self._open(node, c))

    def _nodes(self, c: ev.Assign) -> list["Node"]:
        return [self._node(c.prefill), self._node(c.decode), *([self.nodes[c.relay.node]] if c.relay else [])]

    def _slots(self, node: "Node", c: ev.Assign) -> dict[int, int]:
        """Block -> slot of this node."""
        if node is self._node(c.decode):
            return dict(enumerate(c.decode_slots))
        if node is self._node(c.prefill):
            return dict(zip(c.prefill_blocks, c.prefill_slots, strict=True))
        assert c.relay
        return dict(zip(c.relay.blocks, c.relay.slots, strict=True))

    def _do_StartPull(self, c: ev.StartPull) -> None:
        assign = self.assigns[c.grant]
        self._copy_from(self._node(assign.prefill), self.nodes[c.node], assign, ev.CopyFinished(c.grant))

    def _do_StartFetch(self, c: ev.StartFetch) -> None:
        assign = self.assigns[c.grant]
        assert assign.relay
        self._copy_from(self.nodes[assign.relay.node], self.nodes[c.node], assign, ev.FetchFinished(c.grant))

    def _copy_from(self, source: "Node", node: "Node", c: ev.Assign, done: ev.Event) -> None:
        self.tell(node, lambda: c.grant in node.grants and self.spawn(node, c.grant, self._copy(source, node, c, done)))

    def _do_StartPrefill(self, c: ev.StartPrefill) -> None:
        node = self._node(c.engine)
        self.tell(node, lambda: self._at_engine(node, c.engine, c.grant, self._prefill(node, c.grant)))

    def _do_StartDecode(self, c: ev.StartDecode) -> None:
        node = self._node(c.engine)
        self.tell(node, lambda: self._at_engine(node, c.engine, c.grant, self._decode(node, c.grant)))

    def _do_Release(self, c: ev.Release) -> None:
        node = self.nodes[c.node]
        self.tell(node, lambda: self._release(node, c.grant))

    def _do_FinishRequest(self, c: ev.FinishRequest) -> None:
        self.clients[c.request].ends.append("finished")

    def _do_FailRequest(self, c: ev.FailRequest) -> None:
        self.clients[c.request].ends.append("failed")

    # messages: in order between two parties, late, and lost with a life

    def tell(self, node: Node, action: Callable[[], object]) -> None:
        life = node.life
        node.told_until = max(node.told_until, self.now + self.rng.expovariate(100))
        self.after(node.told_until - self.now, lambda: action() if node.up and node.life == life else None)

    def send(self, node: Node, event: ev.Event | Callable[[], None]) -> None:
        life = node.life
        node.sent_until = max(node.sent_until, self.now + self.rng.expovariate(100))
        act = event if callable(event) else lambda: self.feed(event)
        if node.up:
            self.after(node.sent_until - self.now, lambda: act() if node.known and node.life == life else None)

    def _beat(self, node: Node) -> None:
        opened, queue = node.opened, node.reads_queued * BLOCK

        def report() -> None:
            self.feed(ev.NodeReported(node.name, 400.0, queue if opened == node.assigned else None))

        self.send(node, report)
        self.after(0.3, lambda: self._beat(node))

    # agents and engines

    def _node(self, engine: str) -> Node:
        return self.nodes[engine.split("/")[0]]

    def spawn(self, node: Node, grant: int, work: Work, of_engine: str = "") -> None:
        task = Task(node, grant, work, of_engine)
        node.tasks.append(task)
        self._step(task)

    def _step(self, task: Task) -> None:
        if task.over:
            return
        try:
            delay = next(task.work)
        except StopIteration:
            task.over = True
            task.node.tasks.remove(task)
        else:
            self.after(delay, lambda: self._step(task))

    def _fails(self, node: Node, grant: int) -> bool:
        failed = self.chance(0.02)
        if failed:
            self.send(node, ev.StepFailed(grant, self.rng.choice(["corrupt: k", "missing: k", "transfer: x"])))
        return failed

    def _open(self, node: Node, c: ev.Assign) -> None:
        node.opened += 1
        node.grants[c.grant] = c
        own = [b for s in c.plan.segments if s.reader == node.name for b in range(s.blocks.start, s.blocks.stop)]
        slots = self._slots(node, c)
        if node is not self._node(c.decode) and not own:
            return
        node.reads_queued += len(own)
        self.spawn(node, c.grant, self._load(node, c, [(b, slots[b]) for b in own]))

    def _load(self, node: Node, c: ev.Assign, reads: list[tuple[int, int]]) -> Work:
        arena, left = node.arena, len(reads)
        try:
            for block, slot in reads:
                yield self.rng.expovariate(10)
                arena.begin([slot], c.grant)
                try:
                    yield self.rng.expovariate(20)
                    arena.content[slot] = (self.clients[c.request].session, block)
                finally:
                    arena.end([slot])
                left -= 1
                node.reads_queued -= 1
                if self._fails(node, c.grant):
                    return
                self.send(node, ev.ReadsAdvanced(c.grant, node.name, 1))
            if node is self._node(c.decode):
                yield from self._fetch_retained(node, c)
            self.send(node, ev.ReadsFinished(c.grant, node.name))
        finally:
            node.reads_queued -= left

    def _fetch_retained(self, node: Node, c: ev.Assign) -> Work:
        arena = node.arena
        for r in c.retained:
            source, slot = self.nodes[r.node].arena, c.decode_slots[r.block]
            if source.owner.get(r.slot) != r.grant:  # the node has joined again: the transport refuses
                self.send(node, ev.StepFailed(c.grant, "transfer: refused"))
                yield 1e9
            source.begin([r.slot], r.grant, node)
            arena.begin([slot], c.grant)
            try:
                yield self.rng.expovariate(10)
                arena.content[slot] = source.content[r.slot]
            finally:
                source.end([r.slot], node)
                arena.end([slot])

    def _copy(self, source_node: Node, node: Node, c: ev.Assign, done: ev.Event) -> Work:
        """The decode node copies what another one has read."""
        source, theirs = source_node.arena, self._slots(source_node, c)
        own = [c.decode_slots[b] for b in theirs]
        if any(source.owner.get(s) != c.grant for s in theirs.values()):
            return  # it has joined again
        source.begin(theirs.values(), c.grant, node)
        node.arena.begin(own, c.grant)
        try:
            yield self.rng.expovariate(5)
            for a, b in zip(theirs.values(), own, strict=True):
                node.arena.content[b] = source.content[a]
        finally:
            source.end(theirs.values(), node)
            node.arena.end(own)
        if not self._fails(node, c.grant):
            self.send(node, done)

    def _at_engine(self, node: Node, engine: str, grant: int, work: Work) -> None:
        if grant in node.grants and engine in node.engines:
            self.spawn(node, grant, work, engine)

    def _prefill(self, node: Node, grant: int) -> Work:
        c = node.grants[grant]
        peer, arena, client = self._node(c.decode), self._node(c.decode).arena, self.clients[c.request]
        new = range(c.hit_blocks, -(-client.prompt_tokens // BLOCK))
        yield self.rng.expovariate(10)
        if any(arena.owner.get(s) != grant for s in c.decode_slots):
            return  # the decode node has joined again
        node.arena.begin(c.prefill_slots, grant)
        arena.begin(c.decode_slots, grant)
        try:
            local = self._slots(node, c)
            for block in range(c.hit_blocks):
                place = (node.arena, local[block]) if block in local else (arena, c.decode_slots[block])
                assert place[0].content[place[1]] == (client.session, block), "wrong bytes are prefilled"
            self.send(node, ev.PrefillStarted(grant))
            yield self.rng.expovariate(0.25 if self.chance(0.2) else 5)
            for block in new:
                arena.content[c.decode_slots[block]] = (client.session, block)
        finally:
            node.arena.end(c.prefill_slots)
            arena.end(c.decode_slots)
        if not self._fails(node, grant):
            self.send(node, lambda: self._prefilled(peer, c, FinishReason.LENGTH if client.max_tokens == 1 else None))

    def _prefilled(self, decode: Node, c: ev.Assign, reason: FinishReason | None) -> None:
        """What the driver does with PrefillFinished: new prompt blocks are held and written back."""
        client, attempt = self.clients[c.request], self.machine.attempts.get(c.grant)
        if attempt and decode.known and attempt.decode_node is self.machine.members.nodes.get(decode.name):
            for block in range(c.hit_blocks, client.prompt_tokens // BLOCK):
                self._persist(decode, c.grant, c.decode_slots[block], (client.session, block))
        self.feed(ev.PrefillFinished(c.grant, reason))

    def _persist(self, node: Node, grant: int, slot: int, key: Key) -> None:
        self.held.setdefault(key, (node.name, slot, grant))
        self.feed(ev.BlockHeld(grant, slot))
        self.tell(node, lambda: self.spawn(node, 0, self._write(node, grant, slot, key)))

    def _write(self, node: Node, grant: int, slot: int, key: Key) -> Work:
        skipped = self.chance(0.2)
        node.arena.begin([slot], grant)
        try:
            yield 0.0 if skipped else self.rng.expovariate(1)
            assert node.arena.content[slot] == key, "wrong bytes are written back"
        finally:
            node.arena.end([slot])
        self.send(node, lambda: self._written(node, slot, key, durable=not skipped))

    def _written(self, node: Node, slot: int, key: Key, *, durable: bool) -> None:
        held = self.held.get(key)
        if held and (durable or held[:2] == (node.name, slot)):
            del self.held[key]
        if durable:
            self.durable.add(key)
        self.feed(ev.BlockWritten(node.name, slot))

    def _decode(self, node: Node, grant: int) -> Work:
        c, arena = node.grants[grant], node.arena
        client = self.clients[c.request]
        self.send(node, ev.DecodeStarted(grant))
        arena.begin(c.decode_slots, grant)
        try:
            for block in range(client.prompt_tokens // BLOCK):
                assert arena.content[c.decode_slots[block]] == (client.session, block), "wrong bytes are decoded"
            first = client.prompt_tokens // BLOCK
            for block in range(first, (client.prompt_tokens + client.max_tokens - 1) // BLOCK):
                yield self.rng.expovariate(5)
                slot, key = c.decode_slots[block], (client.session, block)
                arena.content[slot] = key
                self.spawn(node, 0, self._write(node, grant, slot, key))
                self.send(node, lambda slot=slot, key=key: self._filled(node, grant, slot, key))
            yield self.rng.expovariate(5)
        finally:
            arena.end(c.decode_slots)
        if not self._fails(node, grant):
            self.send(node, ev.DecodeFinished(grant, FinishReason.LENGTH, client.max_tokens))

    def _filled(self, node: Node, grant: int, slot: int, key: Key) -> None:
        self.held.setdefault(key, (node.name, slot, grant))
        self.feed(ev.BlockHeld(grant, slot))

    def _release(self, node: Node, grant: int) -> None:
        """What runs ends a little later; then nothing here touches the grant's slots."""

        def stop() -> None:
            for task in [t for t in node.tasks if t.grant == grant]:
                task.stop()
                node.tasks.remove(task)
            node.grants.pop(grant, None)
            self.send(node, ev.Released(grant, node.name))

        self.after(self.rng.expovariate(10), lambda life=node.life: stop() if node.up and node.life == life else None)

    # faults

    def silence(self, node: Node) -> None:
        """A node dies at once, or hangs and writes on for a while, unheard; then it comes back."""
        node.up = False
        if self.chance(0.5):
            self._stop_all(node)
        else:
            self.after(self.rng.uniform(1, 3.5), lambda life=node.life: node.life == life and self._stop_all(node))
        self.after(self.rng.uniform(0.1, 8), lambda: self.join(node))

    def _stop_all(self, node: Node) -> None:
        for task in node.tasks:
            task.stop()
        node.tasks.clear()

    def join(self, node: Node) -> None:
        """A new life: all that the old one did has ended."""
        self._stop_all(node)
        node.life += 1
        node.up = True
        node.arena = Arena(node.arena.slots)
        node.assigned = node.opened = node.reads_queued = 0
        node.grants.clear()
        self._forget(node.name)
        node.known = True
        self.feed(ev.NodeJoined(node.name, node.role, node.arena.slots, 3, 400.0))
        for engine in node.engines:
            self.send(node, ev.EngineJoined(engine, 160, 100.0))

    def crash_engine(self, node: Node) -> None:
        if not node.engines or not node.up:
            return
        engine = node.engines.pop()
        for task in [t for t in node.tasks if t.of_engine == engine]:
            task.stop()
            node.tasks.remove(task)
        self.send(node, ev.EngineLost(engine))

        def back() -> None:
            node.engines.append(engine)
            self.send(node, ev.EngineJoined(engine, 160, 100.0))

        self.after(self.rng.uniform(0.01, 3), back)

    # clients

    def submit(self, client: Client) -> None:
        self.clients[client.name] = client
        self.feed(ev.RequestArrived(client.name, client.prompt_tokens, client.max_tokens))

    def cancel(self, client: Client) -> None:
        if not client.ends:
            client.ends.append("cancelled")
            self.feed(ev.RequestCancelled(client.name))

    def random_load(self, requests: int, seconds: float) -> None:
        for i in range(requests):
            prompt = 500 if self.chance(0.02) else self.rng.randint(1, 60)
            client = Client(f"r{i}", self.rng.randint(0, 5), prompt, self.rng.randint(1, 20))
            arrives = self.rng.uniform(0, seconds)
            self.after(arrives, lambda client=client: self.submit(client))
            if self.chance(0.15):
                self.after(arrives + self.rng.uniform(0, 3), lambda client=client: self.cancel(client))
        for _ in range(int(6 * self.faults)):
            node = self.rng.choice(list(self.nodes.values()))
            self.after(self.rng.uniform(0, seconds), lambda node=node: node.up and self.silence(node))
            self.after(self.rng.uniform(0, seconds), lambda node=node: self.crash_engine(node))

    def check_quiet(self) -> None:
        machine = self.machine
        assert [c for c in self.clients.values() if len(c.ends) != 1] == [], "requests that did not end exactly once"
        assert not machine.waiting
        assert not machine.attempts
        for node in machine.members.nodes.values():
            assert node.ledger.used == 0, f"{node.node} has lost slots"
            assert node.read_queue_tokens == 0
            assert all((e.requests, e.tokens) == (0, 0) for e in node.engines.values())
        assert all(not n.arena.in_use() for n in self.nodes.values())


def simulate(seed: int, requests: int = 40) -> Cluster:
    cluster = Cluster(seed, prefill=1 + seed % 2, decode=1 + seed // 2 % 2)
    cluster.random_load(requests, seconds=12.0)

    def done() -> bool:
        ended = len(cluster.clients) == requests and all(c.ends for c in cluster.clients.values())
        return ended and not cluster.machine.attempts

    cluster.run(400.0, done)
    cluster.run(cluster.now + 15.0)  # write-backs, rejoins and reports
    cluster.check_quiet()
    return cluster


@pytest.mark.parametrize("seed", SEEDS)
def test_every_request_ends_once_and_no_slot_is_lost_or_shared(seed: int) -> None:
    try:
        simulate(seed)
    except AssertionError as error:
        raise AssertionError(f"{error}; replay with DUALPATH_SEED={seed}") from error


def test_the_simulation_reaches_all_that_it_is_about() -> None:
    clusters = [simulate(seed) for seed in range(8)]
    ends = Counter(end for c in clusters for client in c.clients.values() for end in client.ends)
    causes = Counter(cause for c in clusters for cause in c.machine.recomputes.elements())
    assert ends["finished"] > 200
    assert min(ends["failed"], ends["cancelled"]) > 0
    assert {"node lost", "engine lost", "corrupt", "missing", "transfer"} <= set(causes)
    assert sum(len(a.retained) for c in clusters for a in c.assigns.values()) > 20
    assert sum(c.machine.decisions["read:split"] for c in clusters) > 0
    assert sum(c.machine.decisions["read:relay"] for c in clusters) > 10


def test_equal_requests_start_in_order_of_arrival() -> None:
    cluster = Cluster(7, prefill=1, decode=1, faults=0.0)
    for i in range(30):
        cluster.submit(Client(f"r{i}", session=i, prompt_tokens=30, max_tokens=5))
    cluster.run(200.0)
    assert cluster.order == [f"r{i}" for i in range(30)]
    cluster.check_quiet()


def test_a_seed_repeats_itself() -> None:
    assert simulate(3).assigns == simulate(3).assigns


# planted bugs ----------------------------------------------------------------------------------------------------


def free_without_prefill_node(self: Attempt, node: str) -> None:
    if node == self.decode_node.node:
        self.decode_node.ledger.release(self.decode_slots)
        self.decode_slots = Runs()
    RIGHT_LET_GO(self, node)


def free_without_decode_node(self: Attempt, node: str) -> None:
    if node == self.prefill_node.node:
        self.prefill_node.ledger.release(self.prefill_slots)
        self.prefill_slots = Runs()
    RIGHT_LET_GO(self, node)


def free_relay_without_decode_node(self: Attempt, node: str) -> None:
    if self.relay_node and node == self.relay_node.node:
        self.relay_node.ledger.release(self.relay_slots)
        self.relay_slots = Runs()
    RIGHT_LET_GO(self, node)


def prefill_without_relay(self: ClusterMachine, attempt: Attempt) -> None:
    attempt.fetched = True
    RIGHT_START_PREFILL(self, attempt)


def nothing(self: object, *args: object) -> None:
    return None


def never(self: object, *args: object) -> bool:
    return False


def always(self: object, *args: object) -> bool:
    return True


RIGHT_LET_GO = Attempt.let_go
RIGHT_START_PREFILL = ClusterMachine._start_prefill
PLANTED = {
    "decode slots free before the prefill node has released": (Attempt, "let_go", free_without_prefill_node),
    "prefill slots free before the decode node has copied": (Attempt, "let_go", free_without_decode_node),
    "relay slots free before the decode node has fetched": (Attempt, "let_go", free_relay_without_decode_node),
    "a prefill does not wait for what the relay has read": (ClusterMachine, "_start_prefill", prefill_without_relay),
    "a write-back does not keep its slot": (SlotLedger, "begin_write", nothing),
    "a write-back never gives its slot back": (SlotLedger, "end_write", nothing),
    "readers of retained blocks never let go": (Attempt, "drop_sources", nothing),
    "a lost node is believed to be dead at once": (Attempt, "pushing_from", never),
    "a stale hint is believed": (SlotLedger, "holds", always),
    "a cancelled prefill stays on the engine's load": (Attempt, "uncount_prefill", nothing),
    "a finished decode stays on the engine's load": (Attempt, "uncount_decode", nothing),
}


@pytest.mark.replaces_code
@pytest.mark.parametrize("bug", PLANTED)
def test_the_simulation_finds_a_planted_bug(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*PLANTED[bug])
    for seed in range(40):
        try:
            simulate(seed)
        except (AssertionError, KeyError, IndexError):
            return
    pytest.fail("not found in 40 seeds")
