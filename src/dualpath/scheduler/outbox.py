"""Commands of the machine as messages to agents: counts and slots meet keys and tokens."""

from collections.abc import Mapping

from dualpath.core import wire
from dualpath.core.ids import NodeId, node_of
from dualpath.protocol import events as ev
from dualpath.scheduler.index import PrefixIndex
from dualpath.scheduler.requests import LiveRequest


def open_prefill(command: ev.Assign, live: LiveRequest, addresses: Mapping[NodeId, str]) -> wire.OpenPrefill:
    """The prefill node's part of an assignment."""
    keys = live.submission.keys
    return wire.OpenPrefill(
        grant=command.grant,
        engine=command.prefill,
        peer=addresses[node_of(command.decode)],
        slots=list(command.prefill_slots),
        blocks=list(command.prefill_blocks),
        reads=[wire.ReadItem(s, keys[b]) for b, s in zip(command.prefill_blocks, command.prefill_slots, strict=True)],
        peer_slots=list(command.decode_slots),
    )


def open_decode(command: ev.Assign, live: LiveRequest, addresses: Mapping[NodeId, str]) -> wire.OpenDecode:
    """The decode node's part of an assignment."""
    keys, slots = live.submission.keys, list(command.decode_slots)
    own = node_of(command.decode)
    blocks = (b for s in command.plan.segments if s.reader == own for b in range(s.blocks.start, s.blocks.stop))
    return wire.OpenDecode(
        grant=command.grant,
        engine=command.decode,
        peer=addresses[node_of(command.prefill)],
        slots=slots,
        reads=[wire.ReadItem(slots[b], keys[b]) for b in blocks],
        retained=[wire.RetainedItem(slots[r.block], addresses[r.node], r.slot, r.grant) for r in command.retained],
        pulls=[(slots[b], s) for b, s in zip(command.prefill_blocks, command.prefill_slots, strict=True)],
    )


def open_relay(command: ev.Assign, relay: ev.Relay, live: LiveRequest) -> wire.OpenRelay:
    """The third node's part of an assignment."""
    keys = live.submission.keys
    reads = [wire.ReadItem(s, keys[b]) for b, s in zip(relay.blocks, relay.slots, strict=True)]
    return wire.OpenRelay(command.grant, list(relay.slots), reads)


def start_fetch(command: ev.StartFetch, live: LiveRequest, addresses: Mapping[NodeId, str]) -> wire.StartFetch:
    """What the third node has read, for the decode node."""
    assert live.assign and live.assign.relay
    relay, slots = live.assign.relay, list(live.assign.decode_slots)
    pairs = [(slots[b], s) for b, s in zip(relay.blocks, relay.slots, strict=True)]
    return wire.StartFetch(command.grant, addresses[relay.node], pairs)


def start_prefill(command: ev.StartPrefill, live: LiveRequest, block_tokens: int) -> wire.StartPrefill:
    """The request for its prefill engine."""
    assert live.assign is not None
    submission = live.submission
    return wire.StartPrefill(
        grant=command.grant,
        engine=command.engine,
        request=submission.request,
        tokens=submission.tokens,
        cached_tokens=live.assign.hit_blocks * block_tokens,
        max_tokens=submission.max_tokens,
        sampling=submission.sampling,
        reply_to=live.reply_to,
        own_tokens=len(live.assign.prefill_blocks) * block_tokens,
    )


def start_decode(command: ev.StartDecode, live: LiveRequest) -> wire.StartDecode:
    """The request for its decode engine."""
    assert live.assign is not None
    submission = live.submission
    return wire.StartDecode(
        grant=command.grant,
        engine=command.engine,
        request=submission.request,
        tokens=submission.tokens,
        first_token=live.first_token,
        max_tokens=submission.max_tokens,
        sampling=submission.sampling,
        slots=list(live.assign.decode_slots),
        parent_key=live.parent_of(len(submission.keys)),
        reply_to=live.reply_to,
    )


def persist_prompt(live: LiveRequest, index: PrefixIndex) -> wire.Persist:
    """The prompt blocks that this attempt computed and nobody has stored yet."""
    assert live.assign is not None
    assign, keys, slots = live.assign, live.submission.keys, list(live.assign.decode_slots)
    new = [b for b in range(assign.hit_blocks, len(keys)) if not index.knows(keys[b])]
    items = [wire.PersistItem(slots[b], keys[b], live.parent_of(b) if b else b"") for b in new]
    return wire.Persist(assign.grant, items)
