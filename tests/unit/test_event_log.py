"""What a scheduler recorded, a fresh machine repeats; what is not so is told in plain words."""

from pathlib import Path

import pytest

from dualpath.core.errors import ConfigError, ProtocolError
from dualpath.core.report import Role
from dualpath.protocol import events as ev
from dualpath.protocol.machine import Hit, Settings
from dualpath.scheduler.event_log import EventLog, RecordedMachine, replay_log


def recorded(path: Path, *, most_bytes: int = 1 << 20) -> RecordedMachine:
    """A small story, with a hit in an arena and a time-out."""
    log = EventLog(path, most_bytes=most_bytes)
    hits = {"a": Hit(2), "b": Hit(2, (ev.RetainedBlock(1, "d0", 0, 1),))}  # type: ignore[arg-type]
    machine = RecordedMachine(Settings(10, "least-tokens-short-queue", "split"), hits.__getitem__, log)
    for node, role in (("p0", Role.PREFILL), ("d0", Role.DECODE)):
        machine.receive(ev.NodeJoined(node, role, 50, 4, 1000.0), now_ns=0)  # type: ignore[arg-type]
        machine.receive(ev.EngineJoined(f"{node}/0", 1000, 1000.0), now_ns=0)  # type: ignore[arg-type]
    machine.receive(ev.RequestArrived("a", 40, 10), now_ns=1)  # type: ignore[arg-type]
    assert machine.drain()
    machine.receive(ev.RequestArrived("b", 40, 10), now_ns=2)  # type: ignore[arg-type]
    machine.receive(ev.ReadsFinished(1, "d0"), now_ns=3)  # type: ignore[arg-type]
    assert machine.drain()
    machine.on_timeout(now_ns=10**11)
    machine.drain()
    log.close()
    return machine


def test_a_fresh_machine_repeats_a_recorded_story(tmp_path: Path) -> None:
    machine = recorded(tmp_path / "log")
    assert len(machine.waiting) == 2, "the nodes were lost"
    done = replay_log(tmp_path / "log")
    assert done.events == 8
    assert done.commands >= 3


def test_other_commands_are_told(tmp_path: Path) -> None:
    recorded(tmp_path / "log")
    data = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(data.replace(b"least-tokens-short-queue", b"least-tokens-short-queuX"))
    with pytest.raises(KeyError):
        replay_log(tmp_path / "log")
    (tmp_path / "log").write_bytes(data.replace(b"\xa4p0/0", b"\xa4p0/1"))
    assert replay_log(tmp_path / "log").events == 8, "the same name everywhere"
    at = data.rindex(b"\xa4p0/0")  # as a command names it
    (tmp_path / "log").write_bytes(data[:at] + b"\xa4p0/7" + data[at + 5 :])
    with pytest.raises(ProtocolError, match="does not repeat itself"):
        replay_log(tmp_path / "log")


def test_a_log_ends_where_it_is_full_or_cut(tmp_path: Path) -> None:
    recorded(tmp_path / "log", most_bytes=600)
    assert 0 < (tmp_path / "log").stat().st_size <= 600
    few = replay_log(tmp_path / "log")
    assert 0 < few.events < 8
    data = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(data[:-3])
    assert replay_log(tmp_path / "log").events <= few.events


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        replay_log(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="cannot write"):
        EventLog(tmp_path / "nowhere" / "log")
    for content in (b"", b"\5\0\0\0hello", b"\4\0\0\0abc"):
        (tmp_path / "log").write_bytes(content)
        with pytest.raises(ProtocolError, match="no event log"):
            replay_log(tmp_path / "log")
