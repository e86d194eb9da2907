"""Max-min fair rates by progressive filling, for some flows at a time: those whose rates may change.

A link whose users are all among them is shared out whole; of another one only what its other users leave, and then
`reaches_others` tells whether that was just. If it was for all links, the rates of all flows are max-min fair.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from math import inf

from dualpath.sim.links import LOW_SHARE, Flow, Lane, Link

SLACK = 1e-9  # relative: what sums of rates may be off by
UNCHANGED = 1e-12  # relative: less is no new rate

Members = dict[Link, list[Flow]]


def fill(flows: Iterable[Flow]) -> Members:
    """Find the next rate of each flow and the link that bounds it; returns the links in play with these users."""
    for flow in flows:
        flow.next_rate = -1.0
    members = _members(flows)
    for link, mine in members.items():
        link.share = -1.0
        link.room = link.limit()
        if not whole(link, mine):
            link.room += sum([flow.rate * flow.uses[link] for flow in mine]) - link.load
    if not any(flow.lane for flow in flows):
        _share_out(members)
    else:
        _share_out(_members([flow for flow in flows if flow.lane is Lane.HIGH]))
        for link, mine in members.items():
            if _mixed(link) and whole(link, mine):
                link.room += link.rate * LOW_SHARE
        _share_out(_members([flow for flow in flows if flow.lane is Lane.LOW]))
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
    bound = link.binds - sum([flow.bound is link for flow in mine])
    return bound > 0 and any(changes(flow) for flow in mine)


def changes(flow: Flow) -> bool:
    """Whether its next rate is another one."""
    return abs(flow.next_rate - flow.rate) > UNCHANGED * flow.rate


def _mixed(link: Link) -> bool:
    low, high = link.users
    return bool(low and high)


def _fastest_other(link: Link) -> float:
    return max(flow.rate for users in link.users for flow in users if flow.next_rate == inf)


def _members(flows: Iterable[Flow]) -> Members:
    """The flows on each link, whose `weight` becomes the sum of theirs."""
    members: Members = {}
    for flow in flows:
        for link, weight in flow.uses.items():
            mine = members.get(link)
            if mine is None:
                members[link] = [flow]
                link.weight = weight
            else:
                mine.append(flow)
                link.weight += weight
    return members


def _share_out(members: Members) -> None:
    """The link with the least to give each of its flows decides for them, then the next one with what is left.

    Shares elsewhere can only grow by that: a link that came up too early goes back.
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
        link.share = share
        for flow in waiting:
            flow.next_rate = share
            flow.next_bound = link
            for other, weight in flow.uses.items():
                other.room -= share * weight
                other.weight -= weight
