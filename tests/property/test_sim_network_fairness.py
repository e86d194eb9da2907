"""Rates and ends of random networks against a plain computation of max-min fairness."""

import random
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.sim.kernel import Kernel
from dualpath.sim.network import Flow, Lane, Link, Network

PACES = [inf, inf, 0.5, 2.0, 6.0]


def oracle(rates: list[float], flows: list[tuple[int, ...]]) -> list[float]:
    """Max-min fair rates of flows over link indices: raise all rates together until a link is full, and again."""
    result = [-1.0] * len(flows)
    left = list(rates)
    while -1.0 in result:
        shares = {}
        for link in range(len(rates)):
            users = sum(flow.count(link) for flow, rate in zip(flows, result, strict=True) if rate < 0)
            if users:
                shares[link] = left[link] / users
        link = min(shares, key=lambda link: shares[link])
        share = shares[link]
        for index, flow in enumerate(flows):
            if result[index] < 0 and link in flow:
                result[index] = share
                for other in flow:
                    left[other] -= share
    return result


def lanes_oracle(rates: list[float], flows: list[tuple[int, ...]], lanes: list[Lane]) -> list[float]:
    """The high lane on 99% of each link that has both, then the low lane on what is left."""
    of = {lane: [flow for flow, its in zip(flows, lanes, strict=True) if its is lane] for lane in Lane}
    both = [all(any(link in flow for flow in of[lane]) for lane in Lane) for link in range(len(rates))]
    high = oracle([r * 0.99 if mixed else r for r, mixed in zip(rates, both, strict=True)], of[Lane.HIGH])
    left = list(rates)
    for flow, rate in zip(of[Lane.HIGH], high, strict=True):
        for link in flow:
            left[link] -= rate
    found = {Lane.HIGH: iter(high), Lane.LOW: iter(oracle(left, of[Lane.LOW]))}
    return [next(found[lane]) for lane in lanes]


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, float, tuple[int, ...], Lane, float]]]:
    """Rates of links in bytes/ns, and flows as (start, size, links, lane, most bytes/ns)."""
    rates = draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, 7.5, 20.0]), min_size=1, max_size=6))
    routes = st.lists(st.integers(0, len(rates) - 1), min_size=1, max_size=3).map(tuple)
    lane = st.sampled_from(Lane) if draw(st.booleans()) else st.just(Lane.LOW)
    most = st.sampled_from(PACES)
    flow = st.tuples(st.integers(0, 3000), st.integers(1, 5000).map(float), routes, lane, most)
    return rates, draw(st.lists(flow, min_size=1, max_size=10))


def close(left: float, right: float) -> bool:
    return abs(left - right) <= 1e-6 * max(1e-3, abs(right))


def check(network: Network, links: list[Link], running: dict[Flow, tuple[tuple[int, ...], Lane]]) -> None:
    rates, routes, lanes = [link.rate for link in links], [], []
    for flow, (route, lane) in running.items():  # a flow's own bound is a link that nobody else uses
        routes.append((*route, len(rates)))
        rates.append(flow.pace)
        lanes.append(lane)
    expected = lanes_oracle(rates, routes, lanes)
    for flow, rate in zip(running, expected, strict=True):
        assert close(flow.rate, rate), (flow.rate, rate)


@given(plan=plans())
@settings(max_examples=300, deadline=None)
def test_rates_are_max_min_fair_at_all_times_and_bytes_are_conserved(
    plan: tuple[list[float], list[tuple[int, float, tuple[int, ...], Lane, float]]],
) -> None:
    rates, flows = plan
    kernel = Kernel(0)
    network = Network(kernel)
    links = [Link(f"{index}", rate * 1e9) for index, rate in enumerate(rates)]
    running: dict[Flow, tuple[tuple[int, ...], Lane]] = {}
    ended: list[float] = []

    def start(size: float, route: tuple[int, ...], lane: Lane, most: float) -> None:
        flow = network.send(
            tuple(links[index] for index in route), size, lambda: end(flow), lane=lane, most_bytes_per_s=most * 1e9
        )
        running[flow] = (route, lane)
        kernel.at(kernel.now_ns, look, priority=2**40)

    def end(flow: Flow) -> None:
        ended.append(flow.size)
        del running[flow]
        kernel.at(kernel.now_ns, look, priority=2**40)

    def look() -> None:
        if running:
            check(network, links, running)

    for start_ns, *flow in flows:
        kernel.at(start_ns, start, *flow)
    kernel.run()
    assert sorted(ended) == sorted(size for _, size, *_ in flows)
    for index, link in enumerate(links):
        assert link.bytes_moved == sum(size * route.count(index) for _, size, route, *_ in flows)
        assert link.load == 0 and link.binds == 0


@given(seed=st.integers(0, 2**32))
@settings(max_examples=12, deadline=None)
def test_rates_stay_max_min_fair_in_a_larger_network_with_changes(seed: int) -> None:
    """Random traffic over 24 links with cancels and changing rates, looked at after every event."""
    rng = random.Random(seed)
    kernel = Kernel(seed)
    network = Network(kernel)
    links = [Link(f"{index}", rng.choice([5, 10, 10, 40]) * 1e9) for index in range(24)]
    lanes = rng.choice([[Lane.LOW], [Lane.LOW, Lane.HIGH]])
    running: dict[Flow, tuple[tuple[int, ...], Lane]] = {}

    def start() -> None:
        route = tuple(rng.sample(range(24), rng.randint(1, 3)))
        lane = rng.choice(lanes)
        flow = network.send(
            tuple(links[i] for i in route), rng.uniform(1, 8e3), lambda: running.pop(flow), lane=lane,
            most_bytes_per_s=rng.choice(PACES) * 1e9,
        )  # fmt: skip
        running[flow] = (route, lane)

    def change() -> None:
        if running and rng.random() < 0.5:
            network.cancel(flow := rng.choice(list(running)))
            del running[flow]
        else:
            network.set_rate(rng.choice(links), rng.choice([0, 5, 10, 40]) * 1e9)

    for _ in range(120):
        kernel.at(rng.randrange(8000), start)
    for _ in range(20):
        kernel.at(rng.randrange(8000), change)
    for time_ns in range(0, 9000, 40):
        kernel.run(until_ns=time_ns)
        if running:
            check(network, links, running)


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=8),
    starts=st.lists(st.integers(0, 4000), min_size=8, max_size=8),
    rate=st.integers(1, 9),
)
@settings(max_examples=100, deadline=None)
def test_a_faster_link_never_ends_later(sizes: list[int], starts: list[int], rate: int) -> None:
    def last_end(bytes_per_ns: int) -> int:
        kernel = Kernel(0)
        network, link = Network(kernel), Link("nic", bytes_per_ns * 1e9)
        ends: list[int] = []
        for start, size in zip(starts, sizes, strict=False):
            kernel.at(start, lambda size=size: network.send((link,), size, lambda: ends.append(kernel.now_ns)))
        kernel.run()
        assert link.busy_ns <= sum(sizes) / bytes_per_ns + len(sizes) + 1
        return max(ends, default=-1)

    assert last_end(rate) >= last_end(rate + 1) > -inf
