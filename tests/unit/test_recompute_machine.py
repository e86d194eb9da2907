"""The machine under load-or-recompute: what the plan leaves out is computed by the prefill engine."""

import pytest

from dualpath.core.report import Role
from dualpath.protocol import events as ev
from dualpath.protocol.machine import ClusterMachine, Hit, Settings


def assignment(hit: Hit, compute_tokens_per_s: float, *, reported: bool = False) -> tuple[ClusterMachine, ev.Assign]:
    """One request of 100 tokens with that hit, on nodes that read 100 tokens a second."""
    settings = Settings(block_tokens=10, prefill_policy="round-robin", read_policy="load-or-recompute")
    machine = ClusterMachine(settings, lambda request: hit)
    at_join = 0.0 if reported else compute_tokens_per_s
    events: list[ev.Event] = []
    for node, role in (("p0", Role.PREFILL), ("d0", Role.DECODE)):
        events += [ev.NodeJoined(node, role, 40, 4, 100.0), ev.EngineJoined(f"{node}/0", 1000, 1000.0, at_join)]
    if reported:
        events.append(ev.EngineReported("p0/0", 1000.0, compute_tokens_per_s))
    for event in [*events, ev.RequestArrived("a", 100, 10)]:
        machine.receive(event, now_ns=0)
        machine.check()
    (assign,) = machine.drain()
    assert isinstance(assign, ev.Assign)
    return machine, assign


@pytest.mark.parametrize("reported", [False, True])
def test_a_hit_that_is_computed_sooner_is_not_read(reported: bool) -> None:
    machine, assign = assignment(Hit(8), 1e6, reported=reported)
    assert (assign.hit_blocks, assign.plan.segments, assign.prefill_slots) == (0, (), ())
    assert all(node.read_queue_tokens == 0 for node in machine.members.nodes.values())
    assert machine.decisions["read:nothing"] == 1


@pytest.mark.parametrize("compute_tokens_per_s", [0.0, 1.0])
def test_a_hit_that_is_read_sooner_or_cannot_be_compared_is_read(compute_tokens_per_s: float) -> None:
    _, assign = assignment(Hit(8), compute_tokens_per_s)
    assert (assign.hit_blocks, assign.plan.blocks_by("p0"), assign.plan.blocks_by("d0")) == (8, 4, 4)


def test_with_retained_blocks_nothing_is_left_out() -> None:
    settings = Settings(block_tokens=10, prefill_policy="round-robin", read_policy="load-or-recompute")
    hits = {"a": Hit(0), "b": Hit(8)}
    machine = ClusterMachine(settings, lambda request: hits[request])
    for node, role in (("p0", Role.PREFILL), ("d0", Role.DECODE)):
        machine.receive(ev.NodeJoined(node, role, 40, 4, 100.0), now_ns=0)
        machine.receive(ev.EngineJoined(f"{node}/0", 1000, 1000.0, 1e6), now_ns=0)
    machine.receive(ev.RequestArrived("a", 100, 10), now_ns=0)
    (first,) = machine.drain()
    held = ev.RetainedBlock(5, "d0", first.decode_slots[5], first.grant)
    machine.receive(ev.BlockHeld(first.grant, held.slot), now_ns=0)
    hits["b"] = Hit(8, (held,))
    machine.receive(ev.RequestArrived("b", 100, 10), now_ns=0)
    (second,) = machine.drain()
    assert second.hit_blocks == 8
