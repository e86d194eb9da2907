"""The connector at vLLM's scheduler: what each step loads, streams and saves, and what the agent hears of it.

vLLM calls it from its main thread, the link from its own: one lock. A job (a grant) begins with the agent's message,
which is passed on to the gateway as the invitation to call. The call's request names the grant; the agent gets it back
when it asks and no worker copies for it.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from dualpath.core import engine_wire, wire
from dualpath.core.keys import pack_tokens
from dualpath.core.layout import BlockLayout
from dualpath.core.report import EngineStats, Role
from dualpath.core.request import FinishReason, Ready
from dualpath.vllm.job import Grid, Job, Tracked, grant_of, sequences_of, shifted
from dualpath.vllm.load import Load
from dualpath.vllm.step import Pairs, Session, StepDone, StepMetadata, Stream

log = logging.getLogger("dualpath.vllm")


class Planner:
    """`send` takes messages to the agent, `tell(reply_to, ready)` to a gateway; both without waiting."""

    def __init__(
        self,
        grid: Grid,
        layout: BlockLayout,
        window_tokens: int,
        url: str,
        send: Callable[[wire.Message], None],
        tell: Callable[[str, Ready], None],
    ) -> None:
        self._grid = grid
        self._n_layers = layout.n_layers
        self._window_blocks = window_tokens // grid.block_tokens  # of one half
        self._url = url
        self._send = send
        self._tell = tell
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._jobs: dict[int, Job] = {}
        self._tracked: dict[str, Tracked] = {}
        self._closing: dict[str, Tracked] = {}  # finished for vLLM, but workers still load or save for them
        self._promised: dict[str, Tracked] = {}  # vLLM has blocks for what these promised, workers do not know yet
        self._promised_blocks = 0  # of the window, for this step
        self._finals: list[tuple[str, Pairs]] = []
        self._step = 0
        self._first_layer = 0
        self._fills: dict[int, list[engine_wire.BlockFilled]] = {}  # by the step that saves them
        self._load = Load(layout.kv_bytes_per_token)

    # the link ----------------------------------------------------------------------------------------------------

    def attached(self, session: Session) -> None:
        """An agent has taken us in; it knows nothing of earlier grants."""
        with self._lock:
            self._session = session
            self._first_layer = 0

    def detached(self) -> None:
        """The agent is gone, and with it all grants; their requests go on without."""
        with self._lock:
            self._session = None
            for job in self._jobs.values():
                job.dropping = True
            self._jobs.clear()
            self._fills.clear()

    def receive(self, message: object) -> None:
        """A message of the agent."""
        with self._lock:
            if isinstance(message, wire.StartPrefill | wire.StartDecode):
                job = self._jobs[message.grant] = Job(message)
                cached = message.cached_tokens if isinstance(message, wire.StartPrefill) else 0
                job.streamed_tokens = cached
                self._tell(message.reply_to, Ready(message.request, message.grant, job.role, self._url, cached))
            elif isinstance(message, engine_wire.DropGrant) and message.grant in self._jobs:
                self._jobs[message.grant].dropping = True
                self._let_go(self._jobs[message.grant])
            elif isinstance(message, engine_wire.BatchFailed):
                self._load.count("failed_batches")
                log.warning("a batch's transfer failed, its requests start again: %s", message.cause)

    def _let_go(self, job: Job) -> None:
        """Give a grant back that the agent wants, as soon as no worker touches its slots.

        Its requests may go on: they load, stream and save no more.
        """
        if job.dropping and not self._touches(job) and self._jobs.get(job.grant) is job:
            del self._jobs[job.grant]
            self._send(engine_wire.GrantDropped(job.grant))

    def _touches(self, job: Job) -> bool:
        """Whether workers may be copying from or to the slots. (The agent itself knows when a stream has ended.)"""
        requests = [t for t in (*self._tracked.values(), *self._closing.values()) if t.job is job]
        saving = any(fill.grant == job.grant for fills in self._fills.values() for fill in fills)
        return saving or any(t.loading or t.last_fills for t in requests)

    def stats(self, engine: EngineStats) -> EngineStats:
        """`engine` with the counters of now."""
        with self._lock:
            return self._load.report(engine, len(self._tracked))

    def take_counts(self) -> dict[str, float]:
        """For vLLM's metrics, since the last call."""
        with self._lock:
            return self._load.take()

    # what vLLM's scheduler asks ------------------------------------------------------------------------------------

    def matched(self, request: Any, computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens behind `computed_tokens` that can be loaded, and whether between steps. None: ask again later.

        May be called again and again for one request; the last answer counts when blocks are allocated.
        """
        with self._lock:
            tracked = self._tracked.get(request.request_id) or self._track(request)
            if tracked is None or tracked.job.dropping:
                return 0, False
            job = tracked.job
            available = self._available(tracked)
            tracked.load_start, tracked.load_stop = computed_tokens, max(available, computed_tokens)
            wanted = tracked.load_stop - computed_tokens
            if job.role is Role.DECODE:
                return wanted, wanted > 0
            if self._promised_blocks and self._promised_blocks + self._needs(tracked) > self._window_blocks:
                return None, False
            return wanted, False

    def _track(self, request: Any) -> Tracked | None:
        """Bind a request to the job whose grant it names."""
        job = self._jobs.get(grant_of(request) or -1)
        if job is None or job.dropping:
            self._load.count("unplanned_requests")
            return None
        if pack_tokens(request.all_token_ids[: request.num_prompt_tokens]) != job.start.tokens:
            log.error("request %s has another prompt than its grant %d", request.request_id, job.grant)
            self._send(wire.StepFailed(job.grant, "prompt differs"))
            return None
        tracked = self._tracked[request.request_id] = Tracked(job, request)
        if job.role is Role.DECODE:
            tracked.begin_decode(self._grid.block_tokens)
            job.owner = job.owner or request.request_id
        return tracked

    def _available(self, tracked: Tracked) -> int:
        """First tokens of the request whose KV can be had; after a preemption also blocks that it generated itself."""
        job = tracked.job
        if isinstance(job.start, wire.StartPrefill):
            return min(job.start.cached_tokens, job.prompt_tokens - 1)  # one must be computed, for its logits
        own = tracked.keyed_blocks * self._grid.block_tokens if self._keeps(tracked) else 0
        return max(job.prompt_tokens, own)

    def _needs(self, tracked: Tracked) -> int:
        """Stored blocks of the window for what is loaded, or was there but is to be pushed. Chunks have their own."""
        cached = tracked.job.streamed_tokens
        tokens = max(tracked.load_stop - tracked.load_start, tracked.load_start - cached)
        return tokens // self._grid.block_tokens + 2  # both ends may lie within a stored block

    def allocated(self, request: Any, blocks: list[int], external_tokens: int) -> None:
        """vLLM has `blocks` for a request and counts on the promised tokens, if any."""
        with self._lock:
            tracked = self._tracked.get(request.request_id)
            if tracked is None:
                return
            if not tracked.started:
                tracked.started = True
                self._started(tracked)
            self._promised_blocks += self._needs(tracked) if tracked.job.role is Role.PREFILL else 0
            if external_tokens:
                tracked.load_stop = tracked.load_start + external_tokens
                tracked.blocks = blocks
                self._promised[request.request_id] = tracked

    def _started(self, tracked: Tracked) -> None:
        job = tracked.job
        if self._jobs.get(job.grant) is not job:
            return
        if isinstance(job.start, wire.StartPrefill):
            self._send(wire.PrefillStarted(job.grant))
            self._load.hit(job.start.own_tokens, job.start.cached_tokens)
        elif job.owner == tracked.request.request_id:
            self._send(wire.DecodeStarted(job.grant))

    # one step ----------------------------------------------------------------------------------------------------

    def plan_step(self, output: Any) -> StepMetadata:
        """What workers do in the step that vLLM has just scheduled (its SchedulerOutput)."""
        with self._lock:
            self._step += 1
            self._load.step(len(output.num_scheduled_tokens))
            plan = StepMetadata(self._step, self._session)
            scheduled = [
                (self._tracked[request], tokens, output.kv_connector_block_state.resolve_block_ids(request)[0])
                for request, tokens in output.num_scheduled_tokens.items()
                if request in self._tracked
            ]
            self._plan_stream([s for s in scheduled if s[0].job.role is Role.PREFILL], plan)
            self._plan_loads(plan)
            self._plan_saves([s for s in scheduled if s[0].job.role is Role.DECODE], plan)
            self._promised.clear()
            self._promised_blocks = 0
            return plan

    def _live(self, job: Job) -> bool:
        """Whether the agent still counts on the job."""
        return not job.dropping and self._session is not None

    def _plan_stream(self, scheduled: list[tuple[Tracked, int, list[int]]], plan: StepMetadata) -> None:
        stream, items, place = Stream(self._first_layer, Pairs(), Pairs()), [], 0
        for tracked, tokens, blocks in scheduled:
            if not self._live(tracked.job):
                continue
            item = self._item(tracked, tokens)
            if not (item.fill_blocks or item.push_tokens):
                continue
            items.append(item)
            self._load.streamed(item, self._grid.block_tokens)
            if item.fill_blocks:
                offset = place - item.fill_start
                self._grid.pairs(tracked.load_start, tracked.load_stop, blocks, shifted(offset), stream.fill)
                del self._promised[tracked.request.request_id]
            place += item.fill_blocks
            if item.push_tokens:
                first, stop = item.push_start // self._grid.block_tokens, item.push_start + item.push_tokens
                self._grid.pairs(first * self._grid.block_tokens, stop, blocks, shifted(place - first), stream.push)
                place += -(-stop // self._grid.block_tokens) - first
        if items:
            plan.stream = stream
            self._send(engine_wire.StreamBatch(self._first_layer, items))
            self._first_layer += self._n_layers

    def _item(self, tracked: Tracked, tokens: int) -> engine_wire.StreamItem:
        """A request's part of the batch: its promise, and what is new behind what has left already."""
        job, size = tracked.job, self._grid.block_tokens
        first = blocks = 0
        if tracked.request.request_id in self._promised:
            first = tracked.load_start // size
            blocks = -(-tracked.load_stop // size) - first
        start = job.streamed_tokens
        stop = max(start, min(tracked.request.num_computed_tokens + tokens, job.prompt_tokens))
        job.streamed_tokens = stop
        return engine_wire.StreamItem(job.grant, first, blocks, start, stop - start)

    def _plan_loads(self, plan: StepMetadata) -> None:
        """Loads from the arena; and promises that cannot be kept, for vLLM to compute those tokens itself."""
        for name, tracked in self._promised.items():
            start, stop = tracked.load_start, tracked.load_stop
            pairs = Pairs()
            if isinstance(tracked.job.start, wire.StartDecode):
                tracked.loading = True
                plan.loads[name] = pairs
                if self._jobs.get(tracked.job.grant) is tracked.job:
                    slots = tracked.job.start.slots
                    self._grid.pairs(start, stop, tracked.blocks, slots, pairs)
                    self._load.loaded(stop - start)
                    continue
            size = self._grid.vllm_tokens
            plan.lost += tracked.blocks[start // size : -(-stop // size)]
            self._load.count("lost_tokens", stop - start)

    def _plan_saves(self, scheduled: list[tuple[Tracked, int, list[int]]], plan: StepMetadata) -> None:
        fills = []
        for tracked, tokens, blocks in scheduled:
            if self._keeps(tracked):
                known = min(tracked.request.num_tokens, tracked.request.num_computed_tokens + tokens)
                fills += self._save(tracked, known, blocks, plan.saves)
        for name, pairs in self._finals:
            plan.finals.append(name)
            plan.saves.extend(pairs)
        self._finals.clear()
        if fills:
            self._fills[plan.number] = fills

    def _keeps(self, tracked: Tracked) -> bool:
        """Whether the request's generated blocks are kept."""
        job = tracked.job
        return job.owner == tracked.request.request_id and not job.frozen and self._live(job)

    def _save(self, tracked: Tracked, known: int, blocks: list[int], into: Pairs) -> list[engine_wire.BlockFilled]:
        """Pair the pages of stored blocks that are complete with `known` tokens; their news."""
        fills, size, start = [], self._grid.block_tokens, tracked.job.start
        assert isinstance(start, wire.StartDecode)
        for number, fill in tracked.fill_blocks(known, size):
            self._grid.pairs(number * size, (number + 1) * size, blocks, start.slots, into)
            fills.append(fill)
        self._load.saved(len(fills) * size)
        return fills

    def done(self, finished_sending: set[str], finished_recving: set[str], done: StepDone | None) -> None:
        """What workers said after a step, all ranks together."""
        with self._lock:
            for step in sorted(done.steps) if done else ():
                for fill in self._fills.pop(step, ()):
                    self._send(fill)
            self._load.waited(done.wait_ns if done else 0)
            for name in finished_recving:
                tracked = self._tracked.get(name) or self._closing.pop(name, None)
                if tracked:
                    tracked.loading = False
                    if name not in self._tracked:
                        self._ended(tracked)
            for name in finished_sending:
                if tracked := self._closing.pop(name, None):
                    self._ended(tracked)
            for job in [job for job in self._jobs.values() if job.dropping]:
                self._let_go(job)

    # ends --------------------------------------------------------------------------------------------------------

    def finished(self, request: Any, blocks: list[int], *, completed: bool, capped: bool) -> bool:
        """A request is over; whether vLLM must keep its blocks until they are saved."""
        with self._lock:
            tracked = self._tracked.pop(request.request_id, None)
            self._promised.pop(request.request_id, None)
            if tracked is None:
                return False
            job = tracked.job
            job.capped |= capped
            if tracked.loading:
                self._closing[request.request_id] = tracked
                return False  # vLLM keeps them by itself
            if job.role is Role.PREFILL:
                self._prefilled(tracked, completed)
                return False
            pairs = Pairs()
            if self._keeps(tracked):
                tracked.last_fills = self._save(tracked, request.num_tokens - 1, blocks, pairs)
            if not tracked.last_fills:
                self._ended(tracked)
                return False
            self._finals.append((request.request_id, pairs))
            self._closing[request.request_id] = tracked
            return True

    def _prefilled(self, tracked: Tracked, completed: bool) -> None:
        """A prompt is computed; or it was aborted, perhaps by an operator: then another attempt must follow."""
        job = tracked.job
        if self._live(job):
            if completed and job.streamed_tokens >= job.prompt_tokens:
                self._load.prefilled(job.prompt_tokens)
                self._send(wire.PrefillFinished(job.grant, 0, 0))
            else:
                self._send(wire.StepFailed(job.grant, "prefill incomplete" if completed else "prefill aborted"))
        self._let_go(job)

    def _ended(self, tracked: Tracked) -> None:
        """A decode request is over and its blocks are saved."""
        job = tracked.job
        fills, tracked.last_fills = tracked.last_fills, []
        for fill in fills:
            if self._live(job):
                self._send(fill)
        job.ended += 1
        job.generated_tokens += tracked.request.num_output_tokens
        self._load.generated(tracked.request.num_output_tokens)
        if self._live(job) and job.ended == sequences_of(tracked.request):
            reason = FinishReason.LENGTH if job.capped else FinishReason.STOP
            self._send(wire.DecodeFinished(job.grant, reason, job.generated_tokens))
        self._let_go(job)

    def freeze(self) -> None:
        """The weights have changed: keep nothing more of what runs now."""
        with self._lock:
            for job in self._jobs.values():
                job.frozen = True
