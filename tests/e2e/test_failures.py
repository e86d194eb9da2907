"""What breaks on the way costs time, never right tokens."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dualpath.launch.local import LocalCluster
from e2e.live_cluster import (
    Answer,
    Ask,
    ask_all,
    assert_equal_tokens,
    cluster,
    cluster_report,
    random_asks,
    wait_durable,
)

Reference = Callable[[Path, Sequence[Ask]], list[list[int]]]
SLOW = {"snic": "4MB/s"}  # a hit of some hundred tokens then takes about a second to read
VERY_SLOW = {"snic": "1MB/s"}


def block_files(store: Path) -> list[Path]:
    """The stored objects, the largest kind of file in the store."""
    files = [p for p in store.rglob("*") if p.is_file()]
    largest = max(p.stat().st_size for p in files)
    return [p for p in files if p.stat().st_size == largest]


@pytest.mark.parametrize(
    ("read_policy", "rounds"),
    [
        ("shorter-queue", 1),  # the one reader names all bad blocks
        ("split", 3),  # the first side that fails ends the other's reads; what these would have found waits its turn
    ],
)
def test_corrupt_and_missing_blocks_are_recomputed_and_stored_again(
    tiny: Path, reference: Reference, tmp_path: Path, read_policy: str, rounds: int
) -> None:
    asks = random_asks(21, 4)
    expected = reference(tiny, asks)
    with cluster(tiny, tmp_path, scheduling={"read_policy": read_policy}) as running:
        assert_equal_tokens(ask_all(running.url, asks), expected)
        wait_durable(running.url)
        files = block_files(tmp_path)
        for number, path in enumerate(sorted(files)):
            if number % 3 == 0:
                path.unlink()
            elif number % 3 == 1:
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
        assert_equal_tokens(ask_all(running.url, asks), expected)
        report = wait_durable(running.url)
        assert report.recomputes.keys() & {"corrupt block", "missing block"}
        for _ in range(rounds):
            assert_equal_tokens(ask_all(running.url, asks), expected)
            wait_durable(running.url)
        assert len(block_files(tmp_path)) == len(files)


@pytest.mark.timeout(480)  # five restarts, each with the engines' imports
def test_roles_killed_in_mid_run_cost_time_only(tiny: Path, reference: Reference, tmp_path: Path) -> None:
    asks = random_asks(22, 6, tokens=60)
    expected = reference(tiny, asks)
    with cluster(tiny, tmp_path, cluster={"topology": "1P2D"}, storage=SLOW, limits={"lease_s": 2.0}) as running:
        assert_equal_tokens(ask_all(running.url, asks), expected)
        for victim in ("scheduler", "agent d0", "engine p0/0", "agent p0", "engine d1/0"):
            wait_durable(running.url)
            answers = _ask_and_kill(running, asks, victim)
            assert_equal_tokens(answers, expected)
            running.wait_ready()
        wait_durable(running.url)


def test_a_third_reader_killed_in_mid_read_costs_time_only(tiny: Path, reference: Reference, tmp_path: Path) -> None:
    rng = random.Random(23)
    asks = [Ask([rng.randrange(32, 250) for _ in range(1500)], 20)]
    expected = reference(tiny, asks)
    with cluster(
        tiny, tmp_path, cluster={"topology": "2P1D"}, storage=VERY_SLOW, limits={"lease_s": 2.0},
        scheduling={"read_policy": "any-node"},
    ) as running:  # fmt: skip
        assert_equal_tokens(ask_all(running.url, asks), expected)
        before = Counter(wait_durable(running.url).decisions)

        def relay() -> str:
            """The prefill node that reads and does not prefill."""
            since = Counter(cluster_report(running.url).decisions) - before
            assert since["read:relay"] == 1, since
            return "agent p1" if since["prefill:p0/0"] else "agent p0"

        assert_equal_tokens(_ask_and_kill(running, asks, relay), expected)
        assert cluster_report(running.url).recomputes == {"node lost": 1}
        running.wait_ready()
        wait_durable(running.url)


def _ask_and_kill(running: LocalCluster, asks: Sequence[Ask], victim: str | Callable[[], str]) -> list[Answer]:
    answers: list[Answer] = []
    client = threading.Thread(target=lambda: answers.extend(ask_all(running.url, asks)))
    client.start()
    while not cluster_report(running.url).running_requests:
        time.sleep(0.01)
    time.sleep(0.3)
    running.kill(victim if isinstance(victim, str) else victim())
    client.join(timeout=120)
    assert not client.is_alive(), "requests hang"
    return answers
