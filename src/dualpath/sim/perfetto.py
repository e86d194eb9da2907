"""What happened, as a file for ui.perfetto.dev: Chrome's trace event format (JSON).

A track is a row, e.g. "p0/3" or "agent 12"; tracks are grouped by what stands before the first "/" or blank.
"""

import re
from pathlib import Path
from typing import Any

import msgspec

from dualpath.core.errors import ConfigError

_Event = tuple[str, int, int, str, int, int, dict[str, Any]]  # phase, group, track, name, begin_ns, duration_ns, args


class Recorder:
    """Keeps the first `limit` events and counts the others in `dropped`."""

    def __init__(self, limit: int = 500_000) -> None:
        self.dropped = 0
        self._limit = limit
        self._events: list[_Event] = []
        self._groups: dict[str, int] = {}
        self._tracks: dict[str, tuple[int, int]] = {}

    def span(self, track: str, name: str, begin_ns: int, end_ns: int, **args: Any) -> None:
        """Something that took time. Spans of one track follow or contain each other; else they are shown wrongly."""
        if end_ns < begin_ns:
            raise ValueError(f"{name} on {track} ends at {end_ns} ns, before it begins at {begin_ns} ns")
        self._add("X", track, name, begin_ns, end_ns - begin_ns, args)

    def counter(self, track: str, name: str, time_ns: int, **values: float) -> None:
        """Values of a quantity from `time_ns` on, drawn as one graph a group and name."""
        self._add("C", track, name, time_ns, 0, values)

    def write(self, file: Path) -> None:
        """The trace so far. ConfigError when the file cannot be written."""
        trace = {
            "displayTimeUnit": "ms",
            "otherData": {"dropped_events": self.dropped},
            "traceEvents": [*self._names(), *map(_encoded, self._events)],
        }
        try:
            file.write_bytes(msgspec.json.encode(trace))
        except OSError as error:
            raise ConfigError(f"cannot write the trace {file}: {error.strerror}") from None

    def _add(self, phase: str, track: str, name: str, begin_ns: int, duration_ns: int, args: dict[str, Any]) -> None:
        if len(self._events) >= self._limit:
            self.dropped += 1
            return
        place = self._tracks.get(track) or self._place(track)
        self._events.append((phase, *place, name, begin_ns, duration_ns, args))

    def _place(self, track: str) -> tuple[int, int]:
        group = re.split(r"[/ ]", track, maxsplit=1)[0]
        number = self._groups.setdefault(group, len(self._groups) + 1)
        self._tracks[track] = place = (number, len(self._tracks) + 1)
        return place

    def _names(self) -> list[dict[str, Any]]:
        groups = [_name("process_name", number, 0, group) for group, number in self._groups.items()]
        return groups + [_name("thread_name", *place, track) for track, place in self._tracks.items()]


def _name(kind: str, group: int, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": group, "tid": track, "args": {"name": name}}


def _encoded(event: _Event) -> dict[str, Any]:
    phase, group, track, name, begin_ns, duration_ns, args = event
    encoded = {"ph": phase, "pid": group, "tid": track, "name": name, "ts": begin_ns / 1000, "args": args}
    if phase == "X":
        encoded["dur"] = duration_ns / 1000
    return encoded
