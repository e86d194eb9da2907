"""Max-min fair rates by progressive filling, for some flows at a time: those whose rates may change.

Only tight links matter: the others have enough for all of their users at once. A tight link whose users are all among
the flows is shared out whole; of another one only what its other users leave, and then `reaches_others` tells whether
that was just. If it was on all links, the rates of all flows are max-min fair.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from math import inf

from dualpath.sim.links import LOW_SHARE, SLACK, Flow, Lane, Link

UNCHANGED = 1e-12  # relative: less is no new rate

Members = dict[Link, list[Flow]]


def fill(flows: Iterable[Flow]) -> Members:
    """Find the next rate of each flow and the link that binds it; returns the tight links with these users."""
    high = False
    for flow in flows:
        flow.next_rate = -1.0
        if flow.lane:
            high = True
    members = _members(flows)
    for link, mine in members.items():
        link.share = -1.0
        mixed = _mixed(link)
        link.room = link.rate * (1 - LOW_SHARE) if mixed else link.rate
        if not whole(link, mine):
            link.room += sum([flow.rate * flow.uses[link] for flow in mine]) - link.load
    if not high:
        _share_out(flows, members)
        return members
    upper = [flow for flow in flows if flow.lane is Lane.HIGH]
    _share_out(upper, _members(upper))
    for link, mine in members.items():
        if _mixed(link) and whole(link, mine):
            link.room += link.rate * LOW_SHARE
    lower = [flow for flow in flows if flow.lane is Lane.LOW]
    _share_out(lower, _members(lower))
    return members


def whole(link: Link, mine: list[Flow]) -> bool:
    """Whether these users are all that it has."""
    low, high = link.users
    return len(mine) == len(low) + len(high)


def reaches_others(link: Link, mine: list[Flow]) -> bool:
    """Whether the next rates of `mine` are unjust to, or let go faster, other users of the link."""
    if whole(link, mine):
        return False
    if link.share >= 0 and (_mixed(link) or _fastest_other(link) > link.share * (1 + SLACK)):
        return True
    if link.binds <= sum([flow.bound is link for flow in mine]):
        return False
    return any([abs(flow.next_rate - flow.rate) > UNCHANGED * flow.next_rate for flow in mine])  # noqa: C419


def bind(flow: Flow, bound: Link | None) -> None:
    """Note which link binds a flow now."""
    if flow.bound is not None:
        flow.bound.binds -= 1
    if bound is not None:
        bound.binds += 1
    flow.bound = bound


def _mixed(link: Link) -> bool:
    low, high = link.users
    return bool(low and high)


def _fastest_other(link: Link) -> float:
    return max(flow.rate for users in link.users for flow in users if flow.next_rate == inf)


def _members(flows: Iterable[Flow]) -> Members:
    """The flows on each tight link, whose `weight` becomes the sum of theirs."""
    members: Members = {}
    for flow in flows:
        flow.tight = [use for use in flow.uses.items() if use[0].tight]
        for link, weight in flow.tight:
            mine = members.get(link)
            if mine is None:
                members[link] = [flow]
                link.weight = weight
            else:
                mine.append(flow)
                link.weight += weight
    return members


def _share_out(flows: Iterable[Flow], members: Members) -> None:
    """The link with the least to give each of its flows decides for them, then the next one with what is left.

    Shares elsewhere can only grow by that: a link that came up too early goes back. So does one with flows that cannot
    take their shares of it, once these have their caps.
    """
    heap = [(link.room / link.weight, order, link) for order, link in enumerate(members)]
    heapify(heap)
    while heap:
        asked, order, link = heappop(heap)
        waiting = [flow for flow in members[link] if flow.next_rate < 0]
        if not waiting:
            continue
        share = max(0.0, link.room / link.weight)
        if share > asked * (1 + SLACK):
            heappush(heap, (share, order, link))
            continue
        if capped := [flow for flow in waiting if flow.cap <= share]:
            for flow in capped:
                _give(flow, flow.cap, None)
            heappush(heap, (share, order, link))
            continue
        link.share = share
        for flow in waiting:
            _give(flow, share, link)
    for flow in flows:
        if flow.next_rate < 0:
            flow.next_rate = flow.cap
            flow.next_bound = None


def _give(flow: Flow, rate: float, bound: Link | None) -> None:
    flow.next_rate = rate
    flow.next_bound = bound
    for link, weight in flow.tight:
        link.room -= rate * weight
        link.weight -= weight
