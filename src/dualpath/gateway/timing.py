"""Where a request's time went: spans derived from the scheduler's Timeline, and what the client saw."""

from collections import OrderedDict

import msgspec

from dualpath.core.request import Done, Timeline

REMEMBERED_REQUESTS = 1000
TIMING_HEADER = "x-dualpath-timing"  # set to 1 by a client that wants the timeline with its answer


def timing_comment(done: Done) -> bytes:
    """A request's timeline as a comment of an event stream."""
    return b": " + TIMING_HEADER.encode() + b" " + msgspec.json.encode(done.timeline) + b"\n\n"


class Spans(msgspec.Struct, frozen=True):
    """Durations in nanoseconds; None = did not happen. The reads of the two sides overlap each other.

    Queue, wait, prefill, handoff and decode follow each other without gaps and sum up to the whole.
    """

    queue_ns: int | None  # arrival at the scheduler until dispatch
    read_prefill_side_ns: int | None  # dispatch until the prefill node's reads were done
    read_decode_side_ns: int | None  # dispatch until the decode node's reads were done
    wait_for_prefill_ns: int | None  # dispatch until the first layer ran: reads, and the engine's own queue
    prefill_ns: int | None
    layer_wait_ns: int  # part of prefill: waiting for layers to arrive
    handoff_ns: int | None  # first token until decode joined a batch
    decode_ns: int | None
    total_ns: int | None


class Explanation(msgspec.Struct, frozen=True):
    """All that is known about a finished request."""

    id: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str
    ttft_ns: int | None  # as the gateway saw it
    e2e_ns: int
    spans: Spans
    timeline: Timeline


def spans_of(timeline: Timeline) -> Spans:
    """The durations between a timeline's moments."""
    t = timeline
    return Spans(
        queue_ns=_between(0, t.dispatched_ns),
        read_prefill_side_ns=_between(t.dispatched_ns, t.prefill_side_loaded_ns),
        read_decode_side_ns=_between(t.dispatched_ns, t.decode_side_loaded_ns),
        wait_for_prefill_ns=_between(t.dispatched_ns, t.prefill_started_ns),
        prefill_ns=_between(t.prefill_started_ns, t.prefill_finished_ns),
        layer_wait_ns=t.layer_wait_ns,
        handoff_ns=_between(t.prefill_finished_ns, t.decode_started_ns),
        decode_ns=_between(t.decode_started_ns, t.finished_ns),
        total_ns=_between(0, t.finished_ns),
    )


def _between(start_ns: int, stop_ns: int) -> int | None:
    return None if start_ns < 0 or stop_ns < 0 else stop_ns - start_ns


class Stopwatch:
    """When tokens came, on the gateway's clock; moments are in nanoseconds since `started_ns`."""

    def __init__(self, started_ns: int) -> None:
        self._started_ns = started_ns
        self._tokens = 0
        self.first_ns: int | None = None
        self.second_ns: int | None = None
        self.last_ns = 0

    def saw(self, tokens: int, now_ns: int) -> None:
        """Note that `tokens` more came at `now_ns`."""
        self.last_ns = now_ns - self._started_ns
        if self._tokens < 1 <= self._tokens + tokens:
            self.first_ns = self.last_ns
        if self._tokens < 2 <= self._tokens + tokens:
            self.second_ns = self.last_ns
        self._tokens += tokens

    @property
    def per_token_ns(self) -> float | None:
        """TPOT: mean time between tokens after the first; None with fewer than two."""
        if self.first_ns is None or self._tokens < 2:
            return None
        return (self.last_ns - self.first_ns) / (self._tokens - 1)


class History:
    """Explanations of the last requests, by id."""

    def __init__(self, limit: int = REMEMBERED_REQUESTS) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, Explanation] = OrderedDict()

    def add(self, done: Done, prompt_tokens: int, watch: Stopwatch, reason: str, e2e_ns: int) -> None:
        """Keep what is known of a finished request; the oldest gives way."""
        self._kept[done.request] = Explanation(
            id=done.request, prompt_tokens=prompt_tokens, cached_tokens=done.cached_tokens,
            completion_tokens=done.completion_tokens, finish_reason=reason,
            ttft_ns=watch.first_ns, e2e_ns=e2e_ns, spans=spans_of(done.timeline), timeline=done.timeline,
        )  # fmt: skip
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)

    def get(self, request_id: str) -> Explanation | None:
        """The explanation, while it is still kept."""
        return self._kept.get(request_id)
