"""Stories of requests, told to the machine event by event: one for each transition and each failure."""

from collections.abc import Sequence

import pytest

from dualpath.core.plan import BlockRange, ReadPlan, ReadSegment
from dualpath.core.report import Role
from dualpath.core.request import FinishReason
from dualpath.protocol import events as ev
from dualpath.protocol.machine import ClusterMachine, Hit, Settings
from dualpath.protocol.request import Phase

SECOND = 1_000_000_000
STOP = FinishReason.STOP


class Story:
    """A cluster of nodes with arenas of 20 slots (4 of them for write-back) and blocks of 10 tokens."""

    def __init__(
        self, nodes: Sequence[str] = ("p0", "d0"), *, slots: int = 20, kv: int = 1000, **settings: object
    ) -> None:
        chosen = {"prefill_policy": "least-tokens-short-queue", "read_policy": "shorter-queue", "overtake_limit": 2}
        self.hits: dict[str, Hit] = {}
        self.machine = ClusterMachine(
            Settings(block_tokens=10, **chosen | settings), lambda request: self.hits.get(request, Hit(0))
        )
        self.now_s = 0.0
        self.slots = slots
        for node in nodes:
            self.join(node, kv)

    def tell(self, *events: ev.Event) -> list[ev.Command]:
        for event in events:
            self.machine.receive(event, now_ns=int(self.now_s * SECOND))
            self.machine.check()
        return self.machine.drain()

    def join(self, node: str, kv: int = 1000, rate: float = 1000.0) -> list[ev.Command]:
        role = Role.PREFILL if node[0] == "p" else Role.DECODE
        return self.tell(ev.NodeJoined(node, role, self.slots, 4, 1000.0), ev.EngineJoined(f"{node}/0", kv, rate))

    def ask(self, name: str, prompt: int = 40, max_tokens: int = 10, hit: Hit | None = None) -> list[ev.Command]:
        if hit:
            self.hits[name] = hit
        return self.tell(ev.RequestArrived(name, prompt, max_tokens))

    def wait(self, seconds: float) -> list[ev.Command]:
        """Time passes; all nodes that are known report."""
        self.now_s += seconds
        for node in list(self.machine.members.nodes):
            self.machine.receive(ev.NodeReported(node, 1000.0, None), now_ns=int(self.now_s * SECOND))
        self.machine.on_timeout(now_ns=int(self.now_s * SECOND))
        self.machine.check()
        return self.machine.drain()

    def used(self, node: str) -> int:
        return self.machine.members.nodes[node].ledger.used

    def load(self, engine: str) -> tuple[int, int]:
        known = self.machine.members.engine(engine)
        assert known
        return known.requests, known.tokens

    def to_prefilling(self, grant: int = 1, name: str = "a") -> None:
        self.ask(name)
        self.tell(ev.ReadsFinished(grant, "d0"))
        assert self.machine.attempts[grant].phase is Phase.PREFILLING

    def to_decoding(self, grant: int = 1, name: str = "a") -> None:
        self.to_prefilling(grant, name)
        self.tell(ev.PrefillFinished(grant, None))
        assert self.machine.attempts[grant].phase is Phase.DECODING

    def all_released(self, grant: int = 1) -> list[ev.Command]:
        return self.tell(ev.Released(grant, "p0"), ev.Released(grant, "d0"))


def of(kind: type[ev.Command], commands: Sequence[ev.Command]) -> list:
    return [command for command in commands if isinstance(command, kind)]


# a life without trouble ------------------------------------------------------------------------------------------


def test_a_request_without_a_hit_goes_through_all_phases() -> None:
    story = Story()
    (assign,) = story.ask("a")
    assert isinstance(assign, ev.Assign)
    assert (assign.hit_blocks, assign.plan, assign.prefill_slots) == (0, ReadPlan(()), ())
    assert len(assign.decode_slots) == 5  # 40 + 10 tokens
    assert (story.load("p0/0"), story.load("d0/0")) == ((1, 40), (1, 50))
    assert story.tell(ev.ReadsFinished(1, "d0")) == [ev.StartPrefill(1, "p0/0")]
    assert story.tell(ev.PrefillStarted(1)) == []
    assert story.tell(ev.PrefillFinished(1, None)) == [ev.StartDecode(1, "d0/0"), ev.Release(1, "p0")]
    assert story.load("p0/0") == (0, 0)
    assert story.tell(ev.DecodeStarted(1), ev.Released(1, "p0")) == []
    assert story.tell(ev.DecodeFinished(1, STOP, 7)) == [ev.FinishRequest(1, "a", STOP, 7), ev.Release(1, "d0")]
    assert story.used("d0") == 5
    story.tell(ev.Released(1, "d0"))
    assert (story.used("d0"), story.load("d0/0"), story.machine.attempts) == (0, (0, 0), {})


def test_what_the_prefill_node_reads_is_copied_before_decode_starts() -> None:
    story = Story()
    (assign,) = story.ask("a", hit=Hit(4))
    assert assign.hit_blocks == 3, "the last prompt token is always computed"
    assert assign.plan == ReadPlan((ReadSegment(BlockRange(0, 3), "p0"),))
    assert story.machine.members.nodes["p0"].read_queue_tokens == 30
    story.tell(ev.ReadsAdvanced(1, "p0", 2))
    assert story.machine.members.nodes["p0"].read_queue_tokens == 10
    story.tell(ev.ReadsAdvanced(1, "p0", 1), ev.ReadsFinished(1, "d0"))
    commands = story.tell(ev.ReadsFinished(1, "p0"))
    assert commands == [ev.StartPull(1, "d0"), ev.StartPrefill(1, "p0/0")]
    assert story.tell(ev.PrefillFinished(1, None)) == [], "handed over, but not copied yet"
    assert story.tell(ev.CopyFinished(1)) == [ev.StartDecode(1, "d0/0"), ev.Release(1, "p0")]
    assert story.used("p0") == 3
    story.tell(ev.Released(1, "p0"))
    assert story.used("p0") == 0


def test_a_first_token_that_is_the_last_ends_the_request_without_decode() -> None:
    story = Story()
    story.to_prefilling()
    commands = story.tell(ev.PrefillFinished(1, STOP))
    assert commands == [ev.FinishRequest(1, "a", STOP, 1), ev.Release(1, "p0"), ev.Release(1, "d0")]
    story.all_released()
    assert (story.used("p0"), story.used("d0")) == (0, 0)


def test_time_with_reads_is_counted_until_the_node_that_reads_is_lost() -> None:
    story = Story()
    story.ask("a", hit=Hit(4))
    story.now_s = 2.0
    story.tell(ev.NodeLost("p0"))
    story.now_s = 5.0
    story.tell(ev.NodeReported("d0", 1000.0, None))
    assert story.machine.any_read_ns == 2 * SECOND


def test_a_report_corrects_the_read_queue_only_when_it_has_seen_all() -> None:
    story = Story()
    story.ask("a", hit=Hit(4))
    story.tell(ev.NodeReported("p0", 500.0, None))
    assert story.machine.members.nodes["p0"].read_queue_tokens == 30
    story.tell(ev.NodeReported("p0", 500.0, 20))
    assert story.machine.members.nodes["p0"].read_queue_tokens == 20


# slots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["p0", "d0"])
def test_slots_are_free_only_when_both_nodes_have_let_go(first: str) -> None:
    story = Story()
    story.ask("a", hit=Hit(4))
    story.tell(ev.RequestCancelled("a"), ev.Released(1, first))
    # the decode node may still read what lies on the prefill node; the prefill node may still write to the decode node
    assert (story.used("p0"), story.used("d0")) == (3, 5)
    story.tell(ev.Released(1, "d0" if first == "p0" else "p0"))
    assert (story.used("p0"), story.used("d0")) == (0, 0)


def test_released_counts_only_from_nodes_that_were_asked() -> None:
    story = Story(["p0", "d0", "d1"])
    story.to_prefilling()
    story.tell(ev.Released(1, "d0"), ev.Released(1, "d1"), ev.Released(1, "p0"))
    assert story.used("d0") == 5
    story.tell(ev.RequestCancelled("a"), ev.Released(1, "d1"), ev.Released(1, "p0"), ev.Released(1, "p0"))
    assert story.used("d0") == 5
    story.tell(ev.Released(1, "d0"), ev.Released(1, "d0"))
    assert story.used("d0") == 0


def test_a_write_back_keeps_its_slot_beyond_the_request() -> None:
    story = Story()
    story.to_decoding()
    slot = story.machine.attempts[1].decode_slots[0]
    story.tell(ev.BlockHeld(1, slot), ev.DecodeFinished(1, STOP, 3))
    story.all_released()
    assert story.used("d0") == 1
    story.tell(ev.BlockWritten("d0", slot))
    assert story.used("d0") == 0
    story.tell(ev.BlockWritten("d0", slot), ev.BlockHeld(1, slot))
    assert story.used("d0") == 0, "late words about ended attempts change nothing"


def test_a_write_back_of_a_former_life_does_not_free_a_slot_of_the_new_one() -> None:
    story = Story()
    story.to_decoding()
    slot = story.machine.attempts[1].decode_slots[0]
    story.tell(ev.BlockHeld(1, slot))
    story.join("d0")
    assert story.used("d0") == 5  # the second attempt
    story.tell(ev.BlockWritten("d0", slot))
    assert story.used("d0") == 5


def test_a_retained_block_is_held_until_the_decode_node_has_it() -> None:
    story = Story(["p0", "d0", "d1"])
    story.to_decoding()
    slot = story.machine.attempts[1].decode_slots[0]
    story.tell(ev.BlockHeld(1, slot))
    retained = ev.RetainedBlock(0, "d0", slot, 1)
    (assign,) = of(ev.Assign, story.ask("b", hit=Hit(3, (retained,))))
    assert (assign.decode, assign.retained) == ("d1/0", (retained,))
    assert assign.plan == ReadPlan((ReadSegment(BlockRange(1, 3), "d1"),))
    story.tell(ev.DecodeFinished(1, STOP, 3), ev.BlockWritten("d0", slot))
    story.all_released()
    assert story.used("d0") == 1
    story.tell(ev.ReadsFinished(2, "d1"))
    assert story.used("d0") == 0


def test_a_retained_block_is_let_go_when_its_reader_is_cancelled_and_out() -> None:
    story = Story()
    story.to_decoding()
    slot = story.machine.attempts[1].decode_slots[0]
    story.tell(ev.BlockHeld(1, slot))
    story.ask("b", hit=Hit(1, (ev.RetainedBlock(0, "d0", slot, 1),)))  # decoded on the same node
    story.tell(ev.DecodeFinished(1, STOP, 3), ev.BlockWritten("d0", slot), ev.RequestCancelled("b"))
    story.all_released()
    assert story.used("d0") == 1 + 5
    story.all_released(2)
    assert story.used("d0") == 0


@pytest.mark.parametrize("wrong", [ev.RetainedBlock(1, "d9", 0, 1), ev.RetainedBlock(1, "d0", 19, 77)])
def test_a_wrong_hint_shortens_the_hit(wrong: ev.RetainedBlock) -> None:
    (assign,) = Story().ask("a", hit=Hit(3, (wrong,)))
    assert (assign.hit_blocks, assign.retained) == (1, ())


def test_a_lost_source_of_a_retained_block_ends_the_attempt_that_fetches_it() -> None:
    story = Story(["p0", "d0", "d1"])
    story.to_decoding()
    slot = story.machine.attempts[1].decode_slots[0]
    story.tell(ev.BlockHeld(1, slot))
    story.ask("b", hit=Hit(3, (ev.RetainedBlock(0, "d0", slot, 1),)))
    commands = story.tell(ev.NodeLost("d0"))
    assert {c.request for c in of(ev.Assign, commands)} == {"a", "b"}
    assert story.machine.recomputes == {"node lost": 2}


# failures --------------------------------------------------------------------------------------------------------


def test_a_failed_step_starts_a_new_attempt_under_a_new_grant() -> None:
    story = Story()
    story.to_prefilling()
    commands = story.tell(ev.StepFailed(1, "corrupt: block 7"))
    assert commands[:2] == [ev.Release(1, "p0"), ev.Release(1, "d0")]
    assert [(c.grant, c.request) for c in of(ev.Assign, commands)] == [(2, "a")]
    assert story.machine.recomputes == {"corrupt": 1}
    assert story.tell(ev.StepFailed(1, "again"), ev.PrefillFinished(1, None), ev.ReadsFinished(1, "d0")) == []


def test_after_failures_nothing_is_read_and_in_the_end_the_client_is_told() -> None:
    story = Story(max_attempts=3, attempts_with_hits=2)
    hits = [of(ev.Assign, story.ask("a", hit=Hit(3)))[0].hit_blocks]
    for grant in (1, 2):
        commands = story.tell(ev.StepFailed(grant, "store: x"))
        hits += [c.hit_blocks for c in of(ev.Assign, commands)]
        story.all_released(grant)
    assert hits == [3, 3, 0]
    (failed,) = of(ev.FailRequest, story.tell(ev.StepFailed(3, "store: x")))
    assert (failed.request, failed.by_request) == ("a", False)
    assert "3 attempts" in failed.message


def test_a_lost_decode_node_sends_the_request_elsewhere() -> None:
    story = Story(["p0", "d0", "d1"])
    story.to_decoding()
    (assign,) = of(ev.Assign, story.tell(ev.NodeLost("d0")))
    assert assign.decode == "d1/0"
    story.tell(ev.Released(1, "p0"))
    assert list(story.machine.attempts) == [2]


def test_a_lost_prefill_node_may_still_write_until_the_release_deadline() -> None:
    story = Story(["p0", "p1", "d0"])
    story.to_prefilling()
    (assign,) = of(ev.Assign, story.tell(ev.NodeLost("p0")))
    assert assign.prefill == "p1/0"
    story.tell(ev.Released(1, "d0"))
    assert story.used("d0") == 10, "slots of the first attempt are still out"
    story.wait(29)
    assert story.used("d0") == 10
    story.wait(2)
    assert story.used("d0") == 5


def test_a_prefill_node_that_joins_again_has_stopped_writing() -> None:
    story = Story(["p0", "p1", "d0"])
    story.to_prefilling()
    story.tell(ev.NodeLost("p0"), ev.Released(1, "d0"))
    story.join("p0")
    assert story.used("d0") == 5


def test_a_lost_prefill_node_that_has_handed_over_takes_nothing_with_it() -> None:
    story = Story()
    story.to_decoding()
    story.tell(ev.Released(1, "p0"))
    assert story.tell(ev.NodeLost("p0")) == []
    assert story.machine.attempts[1].phase is Phase.DECODING


@pytest.mark.parametrize(("engine", "phase", "again"), [
    ("p0/0", "prefilling", True), ("d0/0", "prefilling", True), ("p0/0", "decoding", False), ("d0/0", "decoding", True),
])  # fmt: skip
def test_a_lost_engine_fails_the_attempts_that_still_need_it(engine: str, phase: str, again: bool) -> None:
    story = Story()
    (story.to_prefilling if phase == "prefilling" else story.to_decoding)()
    story.tell(ev.EngineLost(engine))
    assert [w.request for w in story.machine.waiting] == (["a"] if again else [])
    assert bool(story.machine.recomputes) == again
    commands = story.tell(ev.EngineJoined(engine, 1000, 1000.0))
    assert len(of(ev.Assign, commands)) == again
    if again:
        assert (story.load("p0/0")[0], story.load("d0/0")[0]) != (0, 0)


def test_a_silent_node_is_lost_when_its_lease_ends() -> None:
    story = Story(lease_ns=SECOND)
    assert story.machine.next_timeout_ns() == SECOND
    story.machine.on_timeout(now_ns=SECOND)
    assert not story.machine.members.nodes


def test_an_attempt_without_progress_is_tried_again() -> None:
    story = Story(stage_deadline_ns=50 * SECOND)
    story.to_decoding()
    story.wait(30)
    story.tell(ev.BlockHeld(1, story.machine.attempts[1].decode_slots[0]))
    assert story.wait(30) == [], "a block that was filled is progress"
    assert of(ev.Assign, story.wait(30))
    assert story.machine.recomputes == {"deadline": 1}


def test_reads_that_wait_behind_others_are_not_stuck() -> None:
    story = Story(stage_deadline_ns=50 * SECOND)
    story.ask("a", hit=Hit(3))
    story.ask("b", hit=Hit(3))  # by the decode node, whose queue is shorter
    story.wait(40)
    story.tell(ev.ReadsAdvanced(77, "p0", 1), ev.ReadsAdvanced(78, "d0", 1))
    assert story.wait(40) == []
    story.wait(40)
    assert story.machine.recomputes == {"deadline": 2}


def test_a_node_that_does_not_release_is_asked_again() -> None:
    story = Story()
    story.ask("a")
    story.tell(ev.RequestCancelled("a"), ev.Released(1, "d0"))
    assert story.wait(31) == [ev.Release(1, "p0")]
    assert story.wait(31) == [ev.Release(1, "p0")]
    story.tell(ev.Released(1, "p0"))
    assert story.used("d0") == 0


@pytest.mark.parametrize(
    "events", [[], [ev.ReadsFinished(1, "d0")], [ev.ReadsFinished(1, "d0"), ev.PrefillFinished(1, None)]]
)
def test_a_cancelled_request_is_silent_from_then_on(events: list[ev.Event]) -> None:
    story = Story()
    story.ask("a")
    story.tell(*events)
    asked = story.tell(ev.RequestCancelled("a"))
    assert {type(c) for c in asked} == {ev.Release}
    late = [ev.PrefillFinished(1, None), ev.DecodeFinished(1, STOP, 2), ev.StepFailed(1, "x"), ev.CopyFinished(1)]
    assert story.tell(*late, ev.RequestCancelled("a")) == []
    story.all_released()
    assert (story.machine.attempts, list(story.machine.waiting), story.used("d0")) == ({}, [], 0)
    assert (story.load("p0/0"), story.load("d0/0")) == ((0, 0), (0, 0))


# a third reader --------------------------------------------------------------------------------------------------


def relayed(nodes: Sequence[str] = ("p0", "d0", "d1"), **settings: object) -> tuple[Story, ev.Assign]:
    """A request with a hit of 9 blocks that three nodes read: 3 each, the relay those in the middle."""
    story = Story(nodes, read_policy="any-node", slots=60, **settings)
    (assign,) = story.ask("a", prompt=100, hit=Hit(9))
    return story, assign


def reads_finished(*nodes: str) -> list[ev.Event]:
    return [ev.ReadsFinished(1, node) for node in nodes]


def test_what_a_relay_reads_is_fetched_before_the_prefill_and_the_relay_is_out_early() -> None:
    story, assign = relayed()
    assert [s.reader for s in assign.plan.segments] == ["p0", "d1", "d0"]
    assert assign.relay
    assert (assign.relay.node, assign.relay.blocks, len(assign.relay.slots)) == ("d1", (3, 4, 5), 3)
    assert (story.used("d1"), story.machine.members.nodes["d1"].read_queue_tokens) == (3, 30)
    assert story.machine.decisions["read:relay"] == 1
    assert story.load("d1/0") == (0, 0)
    story.tell(ev.ReadsAdvanced(1, "d1", 3))
    assert story.machine.members.nodes["d1"].read_queue_tokens == 0
    assert story.tell(*reads_finished("d1")) == [ev.StartFetch(1, "d0")]
    assert story.tell(*reads_finished("d1", "d0", "p0")) == [ev.StartPull(1, "d0")]
    assert story.tell(ev.FetchFinished(1)) == [ev.Release(1, "d1"), ev.StartPrefill(1, "p0/0")]
    assert story.used("d1") == 3
    story.tell(ev.Released(1, "d1"))
    assert story.used("d1") == 0
    assert story.tell(ev.FetchFinished(1), ev.CopyFinished(1)) == []
    assert story.tell(ev.PrefillFinished(1, None)) == [ev.StartDecode(1, "d0/0"), ev.Release(1, "p0")]
    assert story.tell(ev.DecodeFinished(1, STOP, 3)) == [ev.FinishRequest(1, "a", STOP, 3), ev.Release(1, "d0")]
    story.all_released()
    assert (story.machine.attempts, story.used("p0"), story.used("d0")) == ({}, 0, 0)


def test_the_prefill_waits_for_the_other_reads_when_the_fetch_is_first() -> None:
    story, _ = relayed()
    story.tell(*reads_finished("d1"))
    assert story.tell(ev.FetchFinished(1)) == [ev.Release(1, "d1")]
    assert story.tell(*reads_finished("d0")) == []
    assert ev.StartPrefill(1, "p0/0") in story.tell(*reads_finished("p0"))


def test_a_fetch_that_nobody_asked_for_changes_nothing() -> None:
    story, _ = relayed()
    assert story.tell(ev.FetchFinished(1), *reads_finished("p0", "d0")) == [ev.StartPull(1, "d0")]
    plain = Story()
    plain.ask("a")
    assert plain.tell(ev.FetchFinished(1)) == []


def test_a_relay_without_room_is_done_without() -> None:
    story = Story(["p0", "d0", "d1"], read_policy="any-node", slots=12)  # 8 for grants
    slots = story.machine.members.nodes["d1"].ledger.take(8, 99)
    (assign,) = story.ask("a", prompt=60, hit=Hit(5))
    assert (assign.relay, [s.reader for s in assign.plan.segments]) == (None, ["p0", "d0"])
    story.tell(*reads_finished("p0", "d0"), ev.CopyFinished(1), ev.PrefillFinished(1, STOP))
    story.all_released()
    story.machine.members.nodes["d1"].ledger.release(slots)
    (assign,) = story.ask("b", prompt=60, hit=Hit(5))
    assert assign.relay


def test_the_spare_is_whoever_of_either_role_has_read_soonest() -> None:
    story = Story(["p0", "p1", "d0", "d1"], read_policy="any-node")
    story.tell(ev.NodeReported("p1", 1000.0, 90), ev.NodeReported("d1", 1000.0, 60))
    (first,) = story.ask("a", prompt=40, hit=Hit(3))
    assert (first.prefill, first.decode) == ("p0/0", "d0/0")
    assert first.relay is None, "the pair is sooner alone"
    story.tell(ev.NodeReported("p1", 1000.0, 0), ev.RequestCancelled("a"))
    story.all_released()
    (second,) = story.ask("b", prompt=40, hit=Hit(3))
    assert second.relay
    assert second.relay.node == "p1"
    story.tell(ev.NodeLost("p1"))
    assert story.machine.recomputes == {"node lost": 1}


def test_a_lost_relay_ends_the_attempt_only_before_the_fetch() -> None:
    story, _ = relayed()
    story.tell(*reads_finished("d1"))
    (again,) = of(ev.Assign, story.tell(ev.NodeLost("d1")))
    assert (again.grant, again.relay, story.machine.recomputes) == (2, None, {"node lost": 1})
    story.all_released()
    assert list(story.machine.attempts) == [2]

    story, _ = relayed()
    story.tell(*reads_finished("p0", "d0", "d1"), ev.FetchFinished(1))
    assert story.tell(ev.NodeLost("d1")) == []
    story.tell(ev.CopyFinished(1), ev.PrefillFinished(1, None), ev.DecodeFinished(1, STOP, 3))
    story.all_released()
    assert (story.machine.attempts, story.machine.recomputes) == ({}, {})


def test_a_relay_that_joins_again_holds_nothing_of_its_former_life() -> None:
    story, _ = relayed()
    (again,) = of(ev.Assign, story.join("d1"))
    assert story.machine.recomputes == {"node lost": 1}
    assert again.relay
    assert story.used("d1") == 3, "the new attempt's; those of the former life went with it"
    story.tell(ev.FetchFinished(1), ev.Released(1, "d1"))
    assert story.used("d1") == 3


@pytest.mark.parametrize("reading", [True, False])
def test_slots_of_a_relay_are_free_when_it_and_its_reader_have_let_go(reading: bool) -> None:
    story, _ = relayed()
    story.tell(*([] if reading else reads_finished("d1")))
    asked = story.tell(ev.RequestCancelled("a"))
    assert asked == [ev.Release(1, "p0"), ev.Release(1, "d0"), ev.Release(1, "d1")]
    assert story.machine.members.nodes["d1"].read_queue_tokens == 0
    story.tell(ev.Released(1, "p0"), ev.Released(1, "d1"))
    assert story.used("d1") == 3, "the decode node may still fetch"
    story.tell(ev.Released(1, "d0"))
    assert (story.used("d1"), story.used("d0"), story.machine.attempts) == (0, 0, {})


def test_a_failed_read_of_a_relay_starts_a_new_attempt() -> None:
    story, _ = relayed()
    assert ev.Release(1, "d1") in story.tell(ev.StepFailed(1, "missing block"))
    assert story.machine.recomputes == {"missing block": 1}


def test_a_relay_that_reads_on_is_progress_and_one_that_does_not_release_is_asked_again() -> None:
    story, _ = relayed(stage_deadline_ns=50 * SECOND)
    story.tell(ev.ReadsAdvanced(1, "p0", 3), ev.ReadsAdvanced(1, "d0", 3), *reads_finished("p0", "d0"))
    story.wait(40)
    story.tell(ev.ReadsAdvanced(77, "d1", 1))
    assert story.wait(40) == []
    assert set(story.wait(20)) >= {ev.Release(1, node) for node in ("p0", "d0", "d1")}
    story.all_released()
    assert ev.Release(1, "d1") in story.wait(31)


# waiting ---------------------------------------------------------------------------------------------------------


def test_a_request_waits_for_engines_and_in_the_end_is_told_so() -> None:
    story = Story([], waiting_deadline_ns=60 * SECOND)
    assert story.ask("a") == []
    assert story.machine.next_timeout_ns() == 60 * SECOND
    (failed,) = story.wait(60)
    assert (failed.by_request, story.machine.next_timeout_ns()) == (False, None)


def test_what_can_never_fit_is_refused_at_once_or_when_the_cluster_has_joined() -> None:
    story = Story()
    (failed,) = story.ask("a", prompt=155, max_tokens=6)  # 16 slots of 10 tokens are for grants
    assert failed.by_request
    assert len(of(ev.Assign, story.ask("b", prompt=150, max_tokens=10))) == 1
    early = Story([])
    assert early.ask("a", prompt=155, max_tokens=6) == []
    early.join("p0")
    assert [c.request for c in early.join("d0")] == ["a"]


def test_the_smallest_memory_it_may_meet_bounds_a_request() -> None:
    story = Story(["p0", "d0"], kv=100)
    story.join("d1", kv=60)
    assert story.machine.members.request_capacity_tokens(10) == 60
    assert isinstance(story.ask("a", prompt=60, max_tokens=1)[0], ev.FailRequest)


def test_an_overloaded_prefill_side_stops_the_queue() -> None:
    story = Story(slots=200)
    story.tell(ev.EngineJoined("p0/0", 1000, 10.0))  # beta = 50 tokens
    assert [c.request for c in story.ask("a", prompt=60) + story.ask("b", prompt=10)] == ["a"]
    story.tell(ev.ReadsFinished(1, "d0"))
    assert [c.request for c in of(ev.Assign, story.tell(ev.PrefillFinished(1, None)))] == ["b"]


def test_a_large_request_is_passed_only_so_often() -> None:
    story = Story()  # 16 slots
    assert story.ask("a", prompt=80)  # 9 of them
    assert story.ask("large", prompt=90) == []
    assert story.ask("b", prompt=10)
    assert story.ask("c", prompt=10)
    assert story.ask("d", prompt=10) == [], "large has been passed twice"
    story.tell(ev.RequestCancelled("a"))
    assert [c.request for c in story.all_released()] == ["large", "d"]


def test_a_burst_does_not_pass_more_often_than_the_limit_either() -> None:
    story = Story()
    story.ask("a", prompt=150)
    for name in ("large", "b", "c", "d", "e"):
        assert story.ask(name, prompt=140 if name == "large" else 5, max_tokens=5) == []
    story.ask("f", prompt=5, max_tokens=5)
    story.tell(ev.RequestCancelled("a"))
    assert [c.request for c in story.all_released()] == ["large", "b"]
    assert next(iter(story.machine.waiting)).request == "c"


def test_a_full_decode_group_does_not_stop_the_others() -> None:
    story = Story(["p0", "d0", "d1"], slots=200, kv=100, overtake_limit=0)
    names = [c.request for name in "abc" for c in story.ask(name, prompt=80)]
    assert names == ["a", "b"]  # c waits in the private queue of d0
    story.tell(ev.RequestCancelled("b"), ev.Released(2, "p0"), ev.Released(2, "d1"))
    assert [c.request for c in story.ask("d", prompt=10)] == ["d"]


def test_a_group_that_vanishes_leaves_its_queue_to_the_others() -> None:
    story = Story(["p0", "d0", "d1"], slots=200, kv=100)
    assert [c.decode for name in "abc" for c in story.ask(name, prompt=80)] == ["d0/0", "d1/0"]
    story.tell(ev.EngineLost("d0/0"), ev.RequestCancelled("b"), ev.Released(2, "p0"))
    (again,) = of(ev.Assign, story.tell(ev.Released(2, "d1")))
    assert (again.request, again.decode) == ("a", "d1/0")
    assert [(w.request, w.group) for w in story.machine.waiting] == [("c", "d1")]


def test_a_request_that_needs_more_prefill_slots_than_are_free_waits_without_holding_any() -> None:
    story = Story(read_policy="prefill-only")
    story.ask("a", prompt=100, hit=Hit(9))
    story.tell(ev.ReadsFinished(1, "d0"), ev.ReadsFinished(1, "p0"), ev.PrefillFinished(1, None))
    story.join("d1")
    assert story.ask("b", prompt=100, hit=Hit(9)) == []
    assert (story.used("p0"), story.used("d1")) == (9, 0)
    story.tell(ev.CopyFinished(1))
    assert [c.request for c in story.tell(ev.Released(1, "p0"))] == ["b"]


def test_grants_begin_where_they_are_told_to() -> None:
    (assign,) = Story(first_grant=10**18).ask("a")
    assert assign.grant == 10**18
