import json
from pathlib import Path

import pytest

from dualpath.core.errors import ConfigError
from dualpath.sim.perfetto import Recorder


def test_a_trace_has_named_tracks_spans_and_counters(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.span("p0/3", "prefill", 1500, 4000, tokens=64)
    recorder.span("p0/4", "prefill", 0, 1)
    recorder.counter("p0", "queue", 2000, blocks=7)
    recorder.span("agent 12", "wait", 0, 10)
    recorder.write(tmp_path / "t.json")
    trace = json.loads((tmp_path / "t.json").read_text())
    events = trace["traceEvents"]
    names = {(e["name"], e["args"]["name"]): (e["pid"], e["tid"]) for e in events if e["ph"] == "M"}
    group, track = names["thread_name", "p0/3"]
    assert (group, 0) == names["process_name", "p0"] and names["thread_name", "p0/4"][0] == group
    assert names["process_name", "agent"][0] == names["thread_name", "agent 12"][0] != group
    first, *_, last = [e for e in events if e["ph"] != "M"]
    assert first == {
        "ph": "X", "pid": group, "tid": track, "name": "prefill", "ts": 1.5, "dur": 2.5, "args": {"tokens": 64},
    }  # fmt: skip
    assert last["ts"] == 0 and last["dur"] == 0.01
    (counter,) = [e for e in events if e["ph"] == "C"]
    assert (counter["pid"], counter["ts"], counter["args"]) == (group, 2, {"blocks": 7}) and "dur" not in counter
    assert trace["otherData"] == {"dropped_events": 0}


def test_events_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    recorder = Recorder(limit=2)
    for index in range(5):
        recorder.span(f"track {index}", "a", 0, 1)
    recorder.write(tmp_path / "t.json")
    trace = json.loads((tmp_path / "t.json").read_text())
    assert recorder.dropped == trace["otherData"]["dropped_events"] == 3
    assert sum(e["ph"] == "X" for e in trace["traceEvents"]) == 2
    assert sum(e["name"] == "thread_name" for e in trace["traceEvents"]) == 2


def test_wrong_spans_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="before it begins"):
        Recorder().span("a", "b", 2, 1)
    with pytest.raises(ConfigError, match="cannot write the trace"):
        Recorder().write(tmp_path / "missing" / "t.json")
