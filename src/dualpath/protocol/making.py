"""One waiting request and the two engines chosen for it, made into an attempt: its hit, read plan and slots."""

from collections import Counter
from collections.abc import Callable, Iterator

import msgspec

from dualpath.core.ids import EngineId, NodeId, RequestId, node_of
from dualpath.core.plan import BlockRange, ReadPlan, ReadSegment
from dualpath.core.runs import Runs
from dualpath.policy.loads import ReadChoice
from dualpath.policy.read import READ_POLICIES, SPARE_POLICIES
from dualpath.policy.retain import Kept
from dualpath.protocol.events import RetainedBlock
from dualpath.protocol.membership import Engine, Membership, Node
from dualpath.protocol.request import Attempt
from dualpath.protocol.settings import Settings
from dualpath.protocol.spare import SpareReaders
from dualpath.protocol.waiting import Waiting


class Hit(msgspec.Struct, frozen=True):
    """The cached prefix of a request: `blocks` full blocks, all on storage but those that are elsewhere.

    `retained` lie in arenas, for their write-backs; the first ones may be `kept` in a node's spare DRAM besides.
    """

    blocks: int
    retained: tuple[RetainedBlock, ...] = ()
    kept: Kept | None = None

    @property
    def kept_blocks(self) -> int:
        """How many of the hit need not be read as they are kept."""
        return min(self.kept.blocks, self.blocks) if self.kept else 0


LookUp = Callable[[RequestId], Hit]


class AttemptMaker:
    """Makes attempts, all or nothing. Keeps none of them; counts its decisions by kind."""

    def __init__(self, settings: Settings, look_up: LookUp, members: Membership) -> None:
        self._settings = settings
        self._look_up = look_up
        self._members = members
        self._plan_read = READ_POLICIES[settings.read_policy]
        self._spares = SpareReaders(members) if settings.read_policy in SPARE_POLICIES else None
        self._plans = 0
        self.made = 0
        self.decisions: Counter[str] = Counter()

    def make(self, request: Waiting, prefill_id: EngineId, decode_id: EngineId) -> Attempt | None:
        """Plan the read and reserve all slots on all sides, or change nothing."""
        decode_node = self._members.nodes[node_of(decode_id)]
        total_blocks = -(-request.total_tokens // self._settings.block_tokens)
        if total_blocks > decode_node.ledger.available:
            return None
        prefill_node = self._members.nodes[node_of(prefill_id)]
        hit = self._hit(request)
        plan, relay = self._plan_with_spare(hit, prefill_node, prefill_node.engines[prefill_id], decode_node)
        if not hit.retained:  # the policy may leave the end of the hit to be computed again
            hit = Hit(plan.stop if plan.segments else hit.kept_blocks, kept=hit.kept)
        prefill_blocks = _blocks_of(plan, prefill_node.node)
        if len(prefill_blocks) > prefill_node.ledger.available:
            return None
        grant = self._settings.first_grant + self.made
        self.made += 1
        self._plans += bool(plan.segments)
        request.attempts += 1
        attempt = Attempt(
            grant, request, prefill_node, prefill_node.engines[prefill_id], decode_node,
            decode_node.engines[decode_id], hit.blocks, plan, hit.retained, prefill_blocks,
            prefill_node.ledger.take(len(prefill_blocks), grant), decode_node.ledger.take(total_blocks, grant),
            kept=hit.kept,
        )  # fmt: skip
        if relay:
            attempt.relay_node, attempt.relay_blocks = relay, _blocks_of(plan, relay.node)
            attempt.relay_slots = relay.ledger.take(len(attempt.relay_blocks), grant)
        attempt.occupy([self._members.nodes[r.node] for r in hit.retained], self._settings.block_tokens)
        self._count_decisions(attempt)
        return attempt

    def _hit(self, request: Waiting) -> Hit:
        """The usable hit: at least one prompt token is always computed, for the first token's logits."""
        if request.attempts >= self._settings.attempts_with_hits:
            return Hit(0)
        hit = self._look_up(request.request)
        blocks = min(hit.blocks, (request.prompt_tokens - 1) // self._settings.block_tokens)
        retained = hit.retained
        if retained:
            blocks = min([blocks, *(r.block for r in retained if not self._is_there(r))])
            retained = tuple(r for r in retained if r.block < blocks)
        kept = hit.kept if hit.kept and hit.kept.node in self._members.nodes else None
        return Hit(blocks, retained, kept)

    def _is_there(self, block: RetainedBlock) -> bool:
        """Whether the slot still has the block; the index is only a hint."""
        node = self._members.nodes.get(block.node)
        return node is not None and node.ledger.holds(block.slot, block.grant)

    def _plan_with_spare(self, hit: Hit, prefill: Node, engine: Engine, decode: Node) -> tuple[ReadPlan, Node | None]:
        """The plan and its third reader, if it has one; the pair reads alone if the spare node's arena has no room."""
        spare = self._spares.besides(prefill, decode) if self._spares and hit.blocks else None
        if spare:
            plan = self._plan(hit, prefill, engine, decode, spare)
            blocks = plan.blocks_by(spare.node)
            if blocks <= spare.ledger.available:
                return plan, spare if blocks else None
        return self._plan(hit, prefill, engine, decode), None

    def _plan(self, hit: Hit, prefill: Node, engine: Engine, decode: Node, spare: Node | None = None) -> ReadPlan:
        """The policy plans the blocks between the kept ones and the first retained one; stored ones after that go to
        the decode side.
        """
        first_retained = min([r.block for r in hit.retained], default=hit.blocks)
        block_tokens = self._settings.block_tokens
        choice = ReadChoice(
            BlockRange(min(hit.kept_blocks, first_retained), first_retained), prefill.load(), decode.load(),
            block_tokens, self._plans, spare=spare.load() if spare else None,
            compute_wait_s=engine.wait_s, compute_tokens_per_s=0.0 if hit.retained else engine.compute_tokens_per_s,
        )  # fmt: skip
        plan = self._plan_read(choice)
        if not hit.retained:
            return plan
        return ReadPlan(plan.segments + tuple(ReadSegment(blocks, decode.node) for blocks in _between(hit)))

    def _count_decisions(self, attempt: Attempt) -> None:
        self.decisions[f"prefill:{attempt.prefill.engine}"] += 1
        self.decisions[f"decode:{attempt.decode.engine}"] += 1
        self.decisions[f"read:{_kind(attempt)}"] += 1


def _kind(attempt: Attempt) -> str:
    """Who reads, in a word; "relay" if a third node does, whoever else does."""
    if attempt.relay_node:
        return "relay"
    readers = {s.reader for s in attempt.plan.segments}
    if not readers:
        return "nothing"
    if len(readers) > 1:
        return "split"
    return "decode" if attempt.decode_node.node in readers else "prefill"


def _blocks_of(plan: ReadPlan, reader: NodeId) -> Runs:
    return Runs([(s.blocks.start, len(s.blocks)) for s in plan.segments if s.reader == reader])


def _between(hit: Hit) -> Iterator[BlockRange]:
    """The stored blocks behind the first retained one."""
    retained = sorted(r.block for r in hit.retained)
    for block, following in zip(retained, [*retained[1:], hit.blocks], strict=True):
        if following > block + 1:
            yield BlockRange(block + 1, following)
