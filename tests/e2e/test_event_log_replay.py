"""A live cluster's decisions, recorded, are those of a fresh machine that hears the same."""

from pathlib import Path

from dualpath.scheduler.event_log import replay_log
from e2e.live_cluster import ask_all, cluster, random_asks, wait_durable


def test_a_fresh_machine_repeats_what_a_live_cluster_did(tiny: Path, tmp_path: Path) -> None:
    log = tmp_path / "events.log"
    with cluster(tiny, tmp_path / "store", cluster={"topology": "1P2D"}, log={"events": str(log)}) as running:
        for seed in (1, 1, 2):  # the second time from storage
            ask_all(running.url, random_asks(seed, 4, longest=300, tokens=20))
            wait_durable(running.url)
    done = replay_log(log)
    assert done.events > 12 * 8
    assert done.commands >= 12 * 6  # Assign, StartPrefill, StartDecode, two Release, FinishRequest of every request
