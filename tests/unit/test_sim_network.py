from typing import Any

import pytest

from dualpath.sim.kernel import Kernel
from dualpath.sim.network import Lane, Link, Network

GB = 1e9  # bytes/s: one byte a nanosecond


class Ends:
    """Runs a network and tells when each flow ended."""

    def __init__(self) -> None:
        self.kernel = Kernel(0)
        self.network = Network(self.kernel)
        self.at: dict[str, int] = {}

    def send(self, name: str, links: tuple[Link, ...], size: float, **options: Any) -> Any:
        return self.network.send(links, size, self.ended, name, **options)

    def later(self, time_ns: int, name: str, links: tuple[Link, ...], size: float, **options: Any) -> None:
        self.kernel.at(time_ns, lambda: self.send(name, links, size, **options))

    def ended(self, name: str) -> None:
        self.at[name] = self.kernel.now_ns

    def run(self) -> dict[str, int]:
        self.kernel.run()
        return self.at


def test_one_flow_takes_size_by_rate_and_its_messages() -> None:
    ends, link = Ends(), Link("nic", 2 * GB, message_ns=100)
    ends.send("a", (link,), 1000, messages=5)
    assert ends.run() == {"a": 500 + 5 * 100}
    assert (link.bytes_moved, link.busy_ns) == (1000, 1000)


def test_an_end_is_rounded_up() -> None:
    ends = Ends()
    ends.send("a", (Link("nic", 3 * GB),), 1000)
    assert ends.run() == {"a": 334}


@pytest.mark.parametrize("n", [2, 3, 7])
def test_equal_flows_share_equally_and_end_together(n: int) -> None:
    ends, link = Ends(), Link("nic", GB)
    for index in range(n):
        ends.send(f"{index}", (link,), 1000)
    assert set(ends.run().values()) == {n * 1000}
    assert (link.bytes_moved, link.busy_ns) == (n * 1000, n * 1000)


def test_who_stays_goes_faster() -> None:
    ends, link = Ends(), Link("nic", GB)
    ends.send("short", (link,), 100)
    ends.send("long", (link,), 1000)
    ends.later(1050, "late", (link,), 25)
    # short shares for 200 ns; late arrives with 50 left of long: 50 ns for its 25, and long's last 25 alone
    assert ends.run() == {"short": 200, "late": 1100, "long": 1125}


def test_three_links_give_max_min_and_not_equal_shares() -> None:
    # The narrow link decides for the flow over both links, the wide one gives the rest to its own.
    ends = Ends()
    narrow, wide, spare = Link("narrow", GB), Link("wide", 4 * GB), Link("spare", 100 * GB)
    ends.send("long", (narrow, wide, spare), 500)
    ends.send("narrow", (narrow, spare), 500)
    ends.send("wide", (wide, spare), 3500)
    assert ends.run() == {"long": 1000, "narrow": 1000, "wide": 1000}


def test_a_flow_goes_at_the_rate_of_its_slowest_link() -> None:
    ends = Ends()
    fast, slow = Link("fast", 10 * GB), Link("slow", GB)
    ends.send("slow", (fast, slow), 1000)
    ends.send("fast", (fast,), 9000)
    assert ends.run() == {"slow": 1000, "fast": 1000}
    assert fast.bytes_moved == 10_000


def test_a_flow_goes_no_faster_than_it_may_and_leaves_the_rest_to_others() -> None:
    ends, nic = Ends(), Link("nic", 3 * GB)
    ends.send("paced", (nic,), 1000, most_bytes_per_s=GB)
    ends.send("free", (nic,), 2000)
    assert ends.run() == {"paced": 1000, "free": 1000}


def test_its_own_bound_holds_on_infinitely_fast_links_too() -> None:
    ends, link = Ends(), Link("free", float("inf"))
    ends.send("whole", (link,), 1000, most_bytes_per_s=GB)
    gone = ends.send("gone", (link,), 1000, most_bytes_per_s=GB)
    ends.kernel.run(until_ns=300)
    assert ends.network.moved_bytes(gone) == pytest.approx(300)
    ends.network.cancel(gone)
    assert ends.run() == {"whole": 1000}
    assert link.bytes_moved == pytest.approx(1300)


def test_messages_do_not_count_against_its_own_bound() -> None:
    ends, nic = Ends(), Link("nic", 2 * GB, message_ns=100)
    ends.send("a", (nic,), 1000, messages=2, most_bytes_per_s=GB / 2)  # the link alone: 700 ns
    assert ends.run() == {"a": 2000}


def test_a_link_named_twice_carries_everything_twice() -> None:
    ends, memory = Ends(), Link("dram", 2 * GB)
    ends.send("copy", (memory, Link("nic", 5 * GB), memory), 1000)
    assert ends.run() == {"copy": 1000} and memory.bytes_moved == 2000


def test_messages_cost_only_on_the_links_that_charge_for_them() -> None:
    ends, nic, memory = Ends(), Link("nic", GB, message_ns=50), Link("dram", 2 * GB)
    ends.send("messages", (nic, memory), 500, messages=10)  # alone: 1000 ns, half a byte a ns
    ends.send("bulk", (memory,), 1500)  # memory has 1.5 bytes/ns left
    assert ends.run() == {"messages": 1000, "bulk": 1000}


def test_the_high_lane_goes_first_and_leaves_one_percent() -> None:
    ends, link = Ends(), Link("nic", GB)
    ends.send("low", (link,), 1000)
    ends.send("high", (link,), 990, lane=Lane.HIGH)
    assert ends.run() == {"high": 1000, "low": 1990}


def test_the_low_lane_takes_what_the_high_one_cannot_use() -> None:
    ends, link, slow = Ends(), Link("nic", GB), Link("slow", 0.25 * GB)
    ends.send("high", (link, slow), 250, lane=Lane.HIGH)
    ends.send("low", (link,), 750)
    assert ends.run() == {"high": 1000, "low": 1000}


def test_high_flows_alone_get_all_of_the_link_again() -> None:
    ends, link = Ends(), Link("nic", GB)
    ends.send("low", (link,), 10)
    ends.send("high", (link,), 1990, lane=Lane.HIGH)
    assert ends.run() == {"low": 1000, "high": 2000}


def test_a_rate_changes_in_mid_flow() -> None:
    ends, link = Ends(), Link("nic", GB, message_ns=100)
    ends.send("a", (link,), 800, messages=2)
    ends.kernel.at(500, ends.network.set_rate, link, 0.0)
    ends.kernel.at(1500, ends.network.set_rate, link, 4 * GB)  # the other half: 400 bytes in 100 ns, and a message
    assert ends.run() == {"a": 1700}


def test_a_slower_link_frees_what_its_flows_took_elsewhere() -> None:
    ends, shared, own = Ends(), Link("shared", GB), Link("own", GB)
    ends.send("a", (shared, own), 1000)
    ends.send("b", (shared,), 1000)
    ends.kernel.at(1000, ends.network.set_rate, own, 0.1 * GB)
    assert ends.run() == {"b": 1556, "a": 6000}


def test_rates_must_be_numbers_that_a_link_can_have() -> None:
    with pytest.raises(ValueError, match="give 0 or more"):
        Link("nic", -1)
    link = Link("nic", float("inf"))
    with pytest.raises(ValueError, match="cannot go"):
        Ends().network.set_rate(link, 5)


def test_a_cancelled_flow_counts_what_it_moved_and_leaves_the_rest_to_others() -> None:
    ends, link = Ends(), Link("nic", GB)
    gone = ends.send("gone", (link,), 1000)
    ends.send("stays", (link,), 1000)
    ends.kernel.at(400, ends.network.cancel, gone)
    ends.kernel.at(500, ends.network.cancel, gone)  # again: no effect
    assert ends.run() == {"stays": 1200}
    assert link.bytes_moved == 1200


def test_what_has_arrived_is_told_on_the_way() -> None:
    ends, link = Ends(), Link("nic", GB)
    flow = ends.send("a", (link,), 1000)
    ends.kernel.run(until_ns=300)
    assert ends.network.moved_bytes(flow) == pytest.approx(300)


def test_nothing_and_infinitely_fast_take_no_time_but_are_not_recursive() -> None:
    ends = Ends()
    free, nic = Link("free", float("inf"), message_ns=5), Link("nic", GB)
    ends.send("empty", (nic,), 0)
    ends.send("free", (free,), 1000, messages=3)
    ends.send("no links", (), 10)
    ends.send("both", (free, nic), 100)
    assert not ends.at
    assert ends.run() == {"empty": 0, "free": 0, "no links": 0, "both": 100}
    assert free.bytes_moved == 1100


def test_a_chain_of_a_hundred_thousand_empty_flows_does_not_nest() -> None:
    ends, left = Ends(), [100_000]

    def again() -> None:
        left[0] -= 1
        if left[0]:
            ends.network.send((), 0, again)

    again()
    ends.kernel.run()
    assert left == [0] and ends.kernel.now_ns == 0
