import random
from typing import Any

import pytest

from dualpath.sim.kernel import Kernel
from dualpath.sim.network import Link, Network
from dualpath.sim.read_queue import ReadQueue


class Storage:
    """A queue over one NIC of a byte a nanosecond, blocks of 100 bytes, and what it told."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        self.kernel = Kernel(seed)
        self.network = Network(self.kernel)
        self.nic = Link("snic", 1e9)
        self.queue = ReadQueue(self.kernel, self.network, (self.nic,), block_bytes=100, **options)
        self.told: list[tuple[int, str, int]] = []

    def submit(self, grant: int, blocks: int) -> None:
        self.queue.submit(grant, blocks, self.progress, self.done, (grant,))

    def progress(self, blocks: int, grant: int) -> None:
        self.told.append((self.kernel.now_ns, f"+{blocks}", grant))

    def done(self, grant: int) -> None:
        self.told.append((self.kernel.now_ns, "done", grant))


def test_requests_are_served_in_order_each_at_the_full_rate() -> None:
    s = Storage()
    for grant, blocks in enumerate((3, 1, 2)):
        s.submit(grant, blocks)
    assert s.queue.queued_blocks == 6
    s.kernel.run()
    assert s.told == [
        (300, "+3", 0), (300, "done", 0), (400, "+1", 1), (400, "done", 1), (600, "+2", 2), (600, "done", 2),
    ]  # fmt: skip
    assert (s.queue.busy_ns, s.queue.bytes_moved, s.queue.queued_blocks, s.nic.bytes_moved) == (600, 600, 0, 600)


def test_progress_is_told_in_pieces_and_the_queue_shortens_block_by_block() -> None:
    s = Storage(progress_blocks=2)
    s.submit(7, 5)
    s.kernel.run(until_ns=150)
    assert s.queue.queued_blocks == 4 and s.queue.bytes_moved == pytest.approx(150) and s.queue.busy_ns == 150
    s.kernel.run()
    assert s.told == [(200, "+2", 7), (400, "+2", 7), (500, "+1", 7), (500, "done", 7)]


def test_latency_is_waited_for_once_and_hidden_by_what_is_under_way() -> None:
    s = Storage(latency_ns=1000, concurrency=100)
    s.submit(0, 20)  # from 1000 to 3000
    s.kernel.at(500, s.submit, 1, 1)  # at once after it
    s.kernel.at(2900, s.submit, 2, 1)  # too late to hide all: its block can be there from 3900 on
    s.kernel.run()
    assert [time_ns for time_ns, what, _ in s.told if what == "done"] == [3000, 3100, 4000]


def test_concurrency_and_latency_bound_the_rate() -> None:
    s = Storage(latency_ns=1000, concurrency=2)  # 200 bytes in 1000 ns
    s.submit(0, 10)
    s.kernel.run()
    assert s.told[-1] == (1000 + 10 * 500, "done", 0)


def test_cancelled_requests_leave_the_queue_and_the_nic() -> None:
    s = Storage()
    for grant in range(4):
        s.submit(grant, 10)
    s.kernel.at(400, s.queue.cancel, 0)  # in mid-read
    s.kernel.at(500, s.queue.cancel, 2)  # waits
    s.kernel.at(600, s.queue.cancel, 9)  # not there
    s.kernel.run()
    assert [told for told in s.told if told[1] == "done"] == [(1400, "done", 1), (2400, "done", 3)]
    assert s.queue.bytes_moved == pytest.approx(2400) and s.queue.queued_blocks == 0
    assert s.nic.bytes_moved == pytest.approx(2400) and s.queue.busy_ns == 2400


def test_cancelled_while_it_waits_for_its_first_block() -> None:
    s = Storage(latency_ns=1000, concurrency=100)
    s.submit(0, 5)
    s.kernel.at(300, s.queue.cancel, 0)
    s.kernel.at(300, s.submit, 1, 5)
    s.kernel.run()
    assert s.told == [(1800, "+5", 1), (1800, "done", 1)] and s.queue.bytes_moved == 500


def test_who_is_told_of_progress_may_cancel() -> None:
    s = Storage(progress_blocks=1)
    s.queue.submit(0, 5, lambda blocks: s.queue.cancel(0), lambda: pytest.fail("was cancelled"))
    s.submit(1, 1)
    s.kernel.run()
    assert s.told[-1] == (200, "done", 1)


def test_nothing_to_read_is_done_in_its_turn() -> None:
    s = Storage()
    s.submit(0, 2)
    s.submit(1, 0)
    s.kernel.run()
    assert s.told == [(200, "+2", 0), (200, "done", 0), (200, "done", 1)]
    with pytest.raises(ValueError, match="-1 blocks"):
        s.submit(2, -1)


def poisson(s: Storage, rng: random.Random, load: float, blocks: int, jobs: int) -> float:
    """Mean time in the queue before service, in service times, of Poisson arrivals."""
    service_ns = blocks * 100
    waited: list[int] = []
    time_ns = 0.0
    for _ in range(jobs):
        time_ns += rng.expovariate(load / service_ns)
        arrived = round(time_ns)

        def done(arrived: int = arrived) -> None:
            waited.append(s.kernel.now_ns - arrived - service_ns)

        s.kernel.at(arrived, s.queue.submit, 0, blocks, None, done)
    s.kernel.run()
    assert len(waited) == jobs
    return sum(waited) / jobs / service_ns


@pytest.mark.parametrize(("load", "jobs"), [(0.5, 40_000), (0.8, 150_000)])  # 1.2 and 1.7 % deviation over seeds
def test_mean_wait_is_that_of_an_m_d_1_queue(load: float, jobs: int) -> None:
    seed = 20
    s = Storage(seed)
    found = poisson(s, s.kernel.stream("arrivals"), load, blocks=1000, jobs=jobs)
    expected = load / (2 * (1 - load))
    print(f"seed {seed}, utilisation {load}: waits {found:.4f}, closed form {expected:.4f}")
    assert found == pytest.approx(expected, rel=0.05)
    assert s.queue.busy_ns / s.kernel.now_ns == pytest.approx(load, rel=0.02)


def test_a_saturated_nic_never_idles() -> None:
    s = Storage(latency_ns=5000, concurrency=64, progress_blocks=16)
    s.kernel.at(0, s.submit, 0, 100)
    for index in range(1, 200):
        s.kernel.at(index * 5000, s.submit, index, 100)  # twice what the NIC can do
    s.kernel.run()
    assert s.kernel.now_ns == 5000 + 200 * 10_000
    assert s.nic.busy_ns == 200 * 10_000 and s.nic.bytes_moved == 2_000_000


def test_impossible_queues_are_refused() -> None:
    with pytest.raises(ValueError, match="block size"):
        Storage(concurrency=0)
