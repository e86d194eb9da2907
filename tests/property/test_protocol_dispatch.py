"""The dispatcher starts exactly what the plain one starts, in whatever the cluster goes through.

Two machines, one with each dispatcher, hear the same random events; small numbers, so that ties, full memories, full
arenas and values at the thresholds are common.
"""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.report import Role
from dualpath.core.request import FinishReason
from dualpath.protocol import events as ev
from dualpath.protocol.machine import ClusterMachine, Hit, Settings
from plain_dispatch import PlainDispatcher

BLOCK = 4
SECOND = 1_000_000_000
NODES = ["p0", "p1", "p2", "d0", "d1", "d2"]
SEEN: Counter[str] = Counter()
EVENTS = {
    "ask": 12, "read": 8, "prefilled": 6, "copied": 5, "decoded": 6, "released": 12, "cancel": 1, "fail": 1,
    "node_report": 3, "engine_report": 2, "lose_node": 0.3, "join_node": 0.5, "lose_engine": 0.5, "join_engine": 1,
    "hold": 2, "written": 2, "time": 0.5,
}  # fmt: skip


pytestmark = pytest.mark.replaces_code


class Pair:
    """Both machines, and the random walk of events."""

    def __init__(self, seed: int, prefill_policy: str, read_policy: str, overtake_limit: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0
        self.asked = 0
        self.hits: dict[str, int] = {}
        settings_ = Settings(
            BLOCK, prefill_policy, read_policy, overtake_limit=overtake_limit, lease_ns=15 * SECOND,
            stage_deadline_ns=40 * SECOND, release_deadline_ns=5 * SECOND, waiting_deadline_ns=60 * SECOND,
        )  # fmt: skip
        self.indexed = ClusterMachine(settings_, self._look_up)
        self.plain = ClusterMachine(settings_, self._look_up)
        self.plain._dispatcher = PlainDispatcher(settings_, self.plain._maker, self.plain.members)  # type: ignore
        self.plain.waiting = self.plain._dispatcher.waiting
        self.kv = self.rng.choice([30, 60, 200])
        self.slots = self.rng.choice([12, 30, 100])
        for node in NODES:
            self._join(node)

    def _look_up(self, request: str) -> Hit:
        return Hit(self.hits[request])

    def tell(self, event: ev.Event) -> None:
        for machine in (self.indexed, self.plain):
            machine.receive(event, now_ns=self.now)
        self.compare()

    def compare(self) -> None:
        commands = self.indexed.drain()
        assert commands == self.plain.drain()
        SEEN.update(type(c).__name__ for c in commands)
        self.indexed.check()
        now, then = ([(w.request, w.overtaken) for w in m.waiting] for m in (self.indexed, self.plain))
        assert now == then
        SEEN["overtaken"] += any(overtaken for _, overtaken in now)
        SEEN["waiting"] += len(now) > 3
        assert self.indexed.next_timeout_ns() == self.plain.next_timeout_ns()
        assert self.indexed.any_read_ns == self.plain.any_read_ns

    # events

    def step(self) -> None:
        self.now += self.rng.choice([0, SECOND // 4])
        kinds, weights = zip(*EVENTS.items(), strict=True)
        getattr(self, f"_{self.rng.choices(kinds, weights)[0]}")()

    def _ask(self) -> None:
        self.asked += 1
        prompt = self.rng.choice([self.rng.randint(1, 12), self.rng.randint(1, 45)])
        self.hits[f"r{self.asked}"] = self.rng.randint(0, prompt // BLOCK)
        self.tell(ev.RequestArrived(f"r{self.asked}", prompt, self.rng.randint(1, 8)))

    def _grant(self) -> ev.Assign | None:
        attempts = self.indexed.attempts
        return attempts[self.rng.choice(list(attempts))].assignment() if attempts else None

    def _of_grant(self, *kinds: object) -> None:
        grant = self._grant()
        if grant:
            side = self.rng.choice([grant.prefill, grant.decode]).split("/")[0]
            for kind in kinds:
                self.tell(kind(grant.grant, side))  # type: ignore[operator]

    def _read(self) -> None:
        blocks = self.rng.randint(1, 5)
        self._of_grant(lambda g, n: ev.ReadsAdvanced(g, n, blocks), lambda g, n: ev.ReadsFinished(g, n))

    def _prefilled(self) -> None:
        reason = self.rng.choice([None, None, None, FinishReason.STOP])
        self._of_grant(lambda g, n: ev.PrefillFinished(g, reason))

    def _copied(self) -> None:
        self._of_grant(lambda g, n: ev.CopyFinished(g))

    def _decoded(self) -> None:
        self._of_grant(lambda g, n: ev.DecodeFinished(g, FinishReason.STOP, 1))

    def _released(self) -> None:
        self._of_grant(ev.Released)

    def _fail(self) -> None:
        self._of_grant(lambda g, n: ev.StepFailed(g, "store"))

    def _cancel(self) -> None:
        if self.asked:
            self.tell(ev.RequestCancelled(f"r{self.rng.randint(1, self.asked)}"))

    def _hold(self) -> None:
        grant = self._grant()
        if grant and grant.decode_slots:
            slot = self.rng.choice(grant.decode_slots)
            self._of_grant(lambda g, n: ev.BlockHeld(grant.grant, slot))

    def _written(self) -> None:
        self.tell(ev.BlockWritten(self.rng.choice(NODES[3:]), self.rng.randrange(self.slots)))

    def _node_report(self) -> None:
        queue = self.rng.choice([None, None, self.rng.randint(0, 60)])
        self.tell(ev.NodeReported(self.rng.choice(NODES), float(self.rng.randint(0, 20)), queue))

    def _engine(self) -> str:
        return f"{self.rng.choice(NODES)}/{self.rng.randint(0, 2)}"

    def _engine_report(self) -> None:
        self.tell(ev.EngineReported(self._engine(), float(self.rng.randint(1, 20))))

    def _lose_node(self) -> None:
        self.tell(ev.NodeLost(self.rng.choice(NODES)))

    def _join_node(self) -> None:
        self._join(self.rng.choice(NODES))

    def _join(self, node: str) -> None:
        role = Role.PREFILL if node[0] == "p" else Role.DECODE
        self.tell(ev.NodeJoined(node, role, self.slots, 3, 10.0))
        for i in range(self.rng.randint(1, 3)):
            self.tell(ev.EngineJoined(f"{node}/{i}", self.kv, 8.0))

    def _lose_engine(self) -> None:
        self.tell(ev.EngineLost(self._engine()))

    def _join_engine(self) -> None:
        self.tell(ev.EngineJoined(self._engine(), self.kv + self.rng.choice([0, 0, 10]), 8.0))

    def _time(self) -> None:
        self.now += self.rng.randint(1, 8) * SECOND
        for machine in (self.indexed, self.plain):
            machine.on_timeout(now_ns=self.now)
        self.compare()


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 10**9),
    st.sampled_from(["least-tokens-short-queue", "least-tokens-short-queue", "round-robin"]),
    st.sampled_from(["prefill-only", "shorter-queue", "split"]),
    st.integers(0, 4),
)
def test_both_dispatchers_start_the_same_attempts(seed: int, prefill: str, read: str, overtake_limit: int) -> None:
    pair = Pair(seed, prefill, read, overtake_limit)
    for _ in range(120):
        pair.step()


def test_the_walks_reach_all_that_they_are_about() -> None:
    SEEN.clear()
    for seed in range(12):
        pair = Pair(seed, "least-tokens-short-queue", "split", 2)
        for _ in range(200):
            pair.step()
    assert min(SEEN[name] for name in ("Assign", "StartDecode", "FinishRequest", "FailRequest", "Release")) > 5, SEEN
    assert min(SEEN[name] for name in ("overtaken", "waiting")) > 50, SEEN
