"""A network of links: who moves bytes at which rate, until when.

Flows are fluid. Those of a lane share links max-min fairly; the high lane goes first and leaves the low one a little,
so that it never starves (paper section 4). Rates are settled once an instant, and only for the flows that a change
really reaches; docs/design/sim-network.md tells why that is exact.
"""

from collections.abc import Callable
from math import ceil, inf
from typing import Any

from dualpath.sim.fair_share import UNCHANGED, Members, bind, fill, reaches_others, whole
from dualpath.sim.kernel import Kernel
from dualpath.sim.links import LOW_SHARE, NEVER, Flow, Lane, Link

__all__ = ["Flow", "Lane", "Link", "Network"]

_LAST = 2**30  # priority: after all else that happens at the same time
_ROOMY = 1 - LOW_SHARE  # of a link's rate: a demand that surely fits
_EARLY_NS = 1e-3  # an end so little after a whole nanosecond is float noise and not rounded up


class Network:
    """Starts flows and tells when they end; see the module."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._dirty: dict[Link, None] = {}  # their users need new rates before this instant ends

    def send(
        self,
        links: tuple[Link, ...],
        size: float,
        done: Callable[..., Any],
        *args: Any,
        lane: Lane = Lane.LOW,
        messages: int = 1,
        most_bytes_per_s: float = inf,
    ) -> Flow:
        """Move `size` bytes over all of `links` at once (twice over a link named twice), then call done(*args).

        Each message takes message_ns of every link besides. It goes no faster than at `most_bytes_per_s`, whatever the
        links have. `done` is called by the kernel, never from in here.
        """
        flow = Flow(links, size, messages, most_bytes_per_s / 1e9, lane, done, args)
        self._enter(flow, 1.0)
        return flow

    def cancel(self, flow: Flow) -> None:
        """Take a flow off: its `done` is not called; what it has moved stays counted. One that ended stays so."""
        if not flow.on:
            return
        moved = self.moved_bytes(flow)
        self._leave(flow)
        for link in flow.links:
            link.bytes_moved += moved

    def moved_bytes(self, flow: Flow) -> float:
        """Bytes of a running flow that have arrived by now."""
        if not flow.on or flow.rate == inf:
            return flow.size
        return flow.size * min(1.0, max(0.0, 1 - flow.left_at(self._kernel.now_ns) / flow.work))

    def set_rate(self, link: Link, bytes_per_s: float) -> None:
        """Change a link under its flows; 0 stops them. ValueError between infinite and finite rates."""
        if link.rate == bytes_per_s == inf:
            return
        if not (0 <= bytes_per_s < inf and link.rate < inf):
            raise ValueError(f"link {link.name} cannot go from {link.bytes_per_s} to {bytes_per_s} bytes/s")
        flows = [flow for users in link.users for flow in users]
        parts = [flow.left_at(self._kernel.now_ns) / flow.work for flow in flows]
        for flow in flows:
            self._leave(flow)
        link.put(bytes_per_s)
        for flow, part in zip(flows, parts, strict=True):
            self._enter(flow, part)

    def _enter(self, flow: Flow, part: float) -> None:
        """Put a flow, of which `part` is left, on its links: at its full rate if that takes nothing from others."""
        now_ns, lane = self._kernel.now_ns, flow.lane
        flow.cap = rate = flow.weigh()
        flow.left = flow.work * part
        flow.since_ns = now_ns
        flow.on = True
        crowded = []
        for link, weight in flow.uses.items():
            users = link.users
            if not users[0] and not users[1]:
                link.busy_since_ns = now_ns
            users[lane][flow] = None
            used = rate * weight
            link.demand += used
            link.load += used
            if link.demand > link.rate * _ROOMY:
                limit = link.limit()
                link.tight = link.demand > limit
                if link.load > limit:
                    crowded.append(link)
        if not crowded:
            self._serve(flow, rate)
            return
        for link, weight in flow.uses.items():
            link.load -= rate * weight
        for link in crowded:
            self._touch(link)

    def _serve(self, flow: Flow, rate: float) -> None:
        """Go on at this rate. An event that comes too early is left to find out by itself that it does."""
        flow.rate = rate
        due_ns = self._kernel.now_ns + max(0, ceil(flow.left / rate - _EARLY_NS)) if rate else NEVER
        flow.due_ns = due_ns
        if due_ns < flow.event_ns:
            flow.event_ns = due_ns
            self._kernel.at(due_ns, self._end, flow)

    def _end(self, flow: Flow) -> None:
        now_ns = self._kernel.now_ns
        if flow.due_ns > now_ns:
            if flow.event_ns == now_ns:
                flow.event_ns = flow.due_ns
                if flow.due_ns < NEVER:
                    self._kernel.at(flow.due_ns, self._end, flow)
            return
        self._leave(flow)
        for link in flow.links:
            link.bytes_moved += flow.size
        flow.done(*flow.args)

    def _leave(self, flow: Flow) -> None:
        """Take a flow off its links; others may then go faster only where a link binds them."""
        now_ns, lane = self._kernel.now_ns, flow.lane
        if flow.bound is not None:
            bind(flow, None)
        for link, weight in flow.uses.items():
            users = link.users
            del users[lane][flow]
            link.busy_ns += now_ns - link.busy_since_ns
            link.busy_since_ns = now_ns
            if not users[0] and not users[1]:
                link.load = link.demand = 0.0
                link.tight = False
                continue
            link.load -= flow.rate * weight
            link.demand -= flow.cap * weight
            if link.tight:
                link.tight = link.demand > link.limit()
                if link.binds:
                    self._touch(link)
        flow.uses = {}
        flow.on = False
        flow.rate = 0.0
        flow.due_ns = NEVER

    def _touch(self, link: Link) -> None:
        if not self._dirty:
            self._kernel.at(self._kernel.now_ns, self._settle, priority=_LAST)
        self._dirty[link] = None

    def _settle(self) -> None:
        """New rates for the users of the dirty links, and for those of all links through which that reaches others."""
        fresh, self._dirty = list(self._dirty), {}
        flows: dict[Flow, None] = {}
        members: Members = {}
        while fresh:
            for link in fresh:
                for users in link.users:
                    flows.update(users)
            members = fill(flows)
            fresh = [link for link, mine in members.items() if reaches_others(link, mine)]
        for flow in flows:
            self._apply(flow)
        for link, mine in members.items():
            if whole(link, mine):
                link.load = link.rate - link.room  # exactly: sums of changes would drift

    def _apply(self, flow: Flow) -> None:
        """Make the next rate the rate."""
        rate, flow.next_rate = flow.next_rate, inf
        if flow.bound is not flow.next_bound:
            bind(flow, flow.next_bound)
        change = rate - flow.rate
        if abs(change) <= UNCHANGED * rate:
            return
        for link, weight in flow.uses.items():
            link.load += change * weight
        now_ns = self._kernel.now_ns
        flow.left = flow.left_at(now_ns)
        flow.since_ns = now_ns
        self._serve(flow, rate)
