"""The event log: all that the live machine heard and said, so that a fresh one can be asked to say it again.

    [log]
    events = "events.log"

    python -m dualpath.scheduler.event_log events.log

Recorded are events with their times, answers of the prefix index and the commands that were drained: counts and names,
no keys, tokens or text. A log that has reached its limit ends there and can be replayed up to there.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from dualpath.core.errors import ConfigError, ProtocolError
from dualpath.core.ids import RequestId
from dualpath.core.runs import Runs
from dualpath.protocol import events as ev
from dualpath.protocol.machine import ClusterMachine, Hit, LookUp, Settings

log = logging.getLogger("dualpath.scheduler")
VERSION = 1
MOST_BYTES = 1 << 30  # about 700,000 requests
_HEAD_BYTES = 4  # length of a record, little-endian
_TIMEOUT = ""  # stands for the event's name
Record = tuple[str, msgspec.Raw]
_EVENTS = {kind.__name__: kind for kind in ev.Event.__subclasses__()}


def _plain(value: Any) -> Any:
    assert isinstance(value, Runs), f"no way to record {type(value)}"
    return value.runs


def _from_plain(kind: type, value: Any) -> Any:
    assert kind is Runs, f"no way to read {kind}"
    return Runs((start, length) for start, length in value)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)


class EventLog:
    """A file that is written to until it is full or fails; that never stops the scheduler. Made anew, not appended."""

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES) -> None:
        try:
            self._file: IO[bytes] | None = path.open("wb", buffering=1 << 20)
        except OSError as error:
            raise ConfigError(f"cannot write the event log {path}: {error.strerror}; mend log.events") from None
        self._left = most_bytes

    def write(self, kind: str, *values: Any) -> None:
        """One record."""
        if self._file is None:
            return
        body = _ENCODER.encode((kind, values))
        self._left -= _HEAD_BYTES + len(body)
        if self._left < 0:
            log.warning("the event log is full; it ends here")
            self.close()
            return
        try:
            self._file.write(len(body).to_bytes(_HEAD_BYTES, "little") + body)
        except OSError as error:
            log.error("the event log ends here: %s", error)
            self._file = None

    def close(self) -> None:
        """Write what is buffered; nothing is recorded any more."""
        file, self._file = self._file, None
        try:
            if file:
                file.close()
        except OSError as error:
            log.error("the end of the event log is lost: %s", error)


class RecordedMachine(ClusterMachine):
    """The machine, with a log of what goes in and what comes out."""

    def __init__(self, settings: Settings, look_up: LookUp, event_log: EventLog) -> None:
        def recorded(request: RequestId) -> Hit:
            hit = look_up(request)
            event_log.write("look_up", request, hit)
            return hit

        super().__init__(settings, recorded)
        self._log = event_log
        event_log.write("begin", VERSION, settings)

    def receive(self, event: ev.Event, *, now_ns: int) -> None:
        """Something happened."""
        self._log.write("event", now_ns, type(event).__name__, event)
        super().receive(event, now_ns=now_ns)

    def on_timeout(self, *, now_ns: int) -> None:
        """A deadline may have passed."""
        self._log.write("event", now_ns, _TIMEOUT, None)
        super().on_timeout(now_ns=now_ns)

    def drain(self) -> list[ev.Command]:
        """Commands since the last call, in order."""
        commands = super().drain()
        if commands:
            self._log.write("drained", *map(_said, commands))
        return commands


def _said(command: ev.Command) -> tuple[str, ev.Command]:
    return type(command).__name__, command


class Replayed(msgspec.Struct, frozen=True):
    """How much was replayed, and found equal."""

    events: int
    commands: int


def replay_log(path: Path) -> Replayed:
    """Let a fresh machine hear what the log says; ProtocolError if it does not say what the recorded one said."""
    records = list(_records(path))
    if not records or records[0][0] != "begin":
        raise ProtocolError(f"{path} is no event log; record one with log.events")
    version, settings = _values(records[0], int, Settings)
    if version != VERSION:
        raise ProtocolError(f"{path} has version {version}, we read {VERSION}; replay it with what recorded it")
    replay = _Replay(settings)
    for number, record in enumerate(records[1:], 1):
        if record[0] == "event":
            # answers that the machine asked for while it heard the event come after it
            replay.answers = _following(records, number + 1)
        replay.take(number, record)
    return replay.done


def _following(records: Sequence[Record], start: int) -> list[Record]:
    stop = start
    while stop < len(records) and records[stop][0] == "look_up":
        stop += 1
    return list(records[start:stop])[::-1]


class _Replay:
    """A machine, and the record that it is held against."""

    def __init__(self, settings: Settings) -> None:
        self._machine = ClusterMachine(settings, self._look_up)
        self._number = 0
        self.answers: list[Record] = []  # the next one last
        self.done = Replayed(0, 0)

    def take(self, number: int, record: Record) -> None:
        self._number = number
        if record[0] == "event":
            self._hear(*_values(record, int, str, msgspec.Raw))
        elif record[0] == "drained":
            self._compare(record[1])

    def _hear(self, now_ns: int, name: str, event: msgspec.Raw) -> None:
        if name == _TIMEOUT:
            self._machine.on_timeout(now_ns=now_ns)
        elif name in _EVENTS:
            kind: type[Any] = _EVENTS[name]
            self._machine.receive(msgspec.msgpack.decode(event, type=kind, dec_hook=_from_plain), now_ns=now_ns)
        else:
            raise self._differs(f"an event {name} that this version does not know")
        if self.answers:
            raise self._differs("the recorded machine looked up more requests")
        self.done = Replayed(self.done.events + 1, self.done.commands)

    def _look_up(self, request: RequestId) -> Hit:
        if not self.answers:
            raise self._differs(f"the recorded machine did not look up {request}")
        name, hit = _values(self.answers.pop(), str, Hit)
        if name != request:
            raise self._differs(f"the recorded machine looked up {name}, not {request}")
        return hit

    def _compare(self, said: msgspec.Raw) -> None:
        commands = self._machine.drain()
        now = _ENCODER.encode(tuple(map(_said, commands)))
        if now != bytes(said):
            raise self._differs(f"it said {msgspec.msgpack.decode(said)}, now {msgspec.msgpack.decode(now)}")
        self.done = Replayed(self.done.events, self.done.commands + len(commands))

    def _differs(self, what: str) -> ProtocolError:
        return ProtocolError(f"the machine does not repeat itself at record {self._number}: {what}")


def _values(record: Record, *kinds: Any) -> tuple[Any, ...]:
    return msgspec.msgpack.decode(record[1], type=tuple[kinds], dec_hook=_from_plain)  # type: ignore[valid-type]


def _records(path: Path) -> Iterator[Record]:
    """All whole records; a machine that was killed leaves a piece of one."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the event log {path}: {error.strerror}") from None
    while len(data) >= _HEAD_BYTES:
        end = _HEAD_BYTES + int.from_bytes(data[:_HEAD_BYTES], "little")
        if end > len(data):
            return
        try:
            yield msgspec.msgpack.decode(data[_HEAD_BYTES:end], type=Record)
        except (msgspec.DecodeError, msgspec.ValidationError):
            raise ProtocolError(f"{path} is no event log, or damaged") from None
        data = data[end:]


if __name__ == "__main__":
    print("replayed and equal:", replay_log(Path(sys.argv[1])))
