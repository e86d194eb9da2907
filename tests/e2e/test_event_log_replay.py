"""A live cluster's decisions, recorded, are those of a fresh machine that hears the same."""

from pathlib import Path

from dualpath.scheduler.event_log import replay_log
from e2e.live_cluster import ask_all, cluster, random_asks, wait_durable


def test_a_fresh_machine_repeats_what_a_live_cluster_did(tiny: Path, tmp_path: Path) -> None:
    log = tmp_path / "events.log"
    with cluster(tiny, tmp_path / "store", cluster={"topology": "1P2D"}, log={"events": str(log)}) as running:
        asks = [random_asks(seed, 4, longest=300, tokens=20) for seed in (1, 1, 2)]  # the second time from storage
        for together in asks:
            ask_all(running.url, together)
            wait_durable(running.url)
    done = replay_log(log)
    assert done.events > 12 * 8
    decoded = sum(ask.tokens > 1 for together in asks for ask in together)  # the first token may be the last
    assert done.commands >= 12 * 5 + decoded  # Assign, StartPrefill, two Release, FinishRequest; StartDecode
