"""The measurement of the scheduler runs, and its figures are of what it says."""

from pathlib import Path

import msgspec
import pytest

from dualpath.bench import scheduler_speed


def test_a_small_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "speed.json"
    arguments = ["--nodes", "2P3D", "--engines", "2", "--agents", "50", "--requests", "60", "--waiting", "40"]
    monkeypatch.setattr("sys.argv", ["scheduler_speed", *arguments, "--keys", "5000", "--json", str(file)])
    scheduler_speed.main()
    speed = msgspec.json.decode(file.read_bytes(), type=scheduler_speed.Speed)
    assert speed.index_keys >= 5000
    assert (speed.room.waiting, speed.room.requests) == (0, 60)
    assert speed.queue.waiting >= 40
    for load in (speed.room, speed.queue):
        assert 0 < load.decision_p50_us <= load.decision_p99_us <= load.decision_max_us
        assert load.decisions_per_s > 0
        assert 7 < load.events_per_request < 13


def test_the_index_is_what_the_agents_left_behind() -> None:
    agents = scheduler_speed.Agents(5)
    index = scheduler_speed.filled_index(agents, 10**6)
    for agent in range(5):
        assert index.look_up(agents.keys(agent)).blocks == len(agents.stored(agent)) < len(agents.keys(agent))
