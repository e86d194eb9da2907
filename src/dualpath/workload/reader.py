"""Reading a workload: the format is seen from the first record, the file is read line by line."""

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec
from msgspec.structs import replace

from dualpath.core.errors import ConfigError
from dualpath.workload import formats
from dualpath.workload.content import Vocabulary
from dualpath.workload.messages import Render, render_plain
from dualpath.workload.model import Session
from dualpath.workload.records import (
    FlatRecord,
    LengthsRecord,
    MessagesRecord,
    MooncakeRecord,
    TauBenchRecord,
    WekaRecord,
)
from dualpath.workload.text import Tokenize


class _Format(NamedTuple):
    """A trace format: the fields that a record of it has, its type, and who makes sessions of its records."""

    fields: frozenset[str]
    record: type
    sessions: Callable[[Iterable[Any], formats.Context], Iterable[Session]]
    is_text: bool


_MOONCAKE = frozenset({"timestamp", "input_length", "output_length", "hash_ids"})
_FORMATS = (
    _Format(frozenset({"id", "turns"}), LengthsRecord, formats.lengths, False),
    _Format(frozenset({"id", "requests"}), WekaRecord, formats.weka, False),
    _Format(_MOONCAKE, MooncakeRecord, formats.mooncake, False),
    _Format(frozenset({"session_id", "input", "output"}), FlatRecord, formats.flattened, True),
    _Format(frozenset({"task_id", "traj"}), TauBenchRecord, formats.tau_bench, True),
    _Format(frozenset({"messages"}), MessagesRecord, formats.conversations, True),
)


def read_workload(
    path: Path, *, vocab: int, tokenize: Tokenize | None = None, render: Render = render_plain, seed: int = 0,
    low: int = 32, limit_sessions: int | None = None,
) -> list[Session]:  # fmt: skip
    """The sessions of a trace file (JSON lines, plain or .gz), at most the first `limit_sessions`.

    Where the trace has no text, contents are drawn from token ids [low, vocab) by `seed`. Traces of text
    need `tokenize` (text to ids, without special tokens added); `render` writes messages as one text (a
    chat template). ConfigError for a file that is not there or not recognised, and for a bad record with
    its line.
    """
    context = formats.Context(Vocabulary(vocab, low, seed), tokenize or _no_tokenizer, render, limit_sessions)
    with _open(path) as file:
        lines = _Lines(path, file)
        first = lines.peek()
        trace = _recognise(path, first)
        if trace.is_text and tokenize is None:
            raise ConfigError(f"{path} holds texts, which need a tokenizer; name a model or a tokenizer.json")
        try:
            sessions = trace.sessions(lines.records(trace.record), context)
            return _unique_ids(islice(sessions, limit_sessions))
        except (msgspec.DecodeError, UnicodeDecodeError, ConfigError) as error:
            raise ConfigError(f"{path}, line {lines.number}: {error}") from None
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{path} cannot be read after line {lines.number}: {error}") from None


def _unique_ids(sessions: Iterable[Session]) -> list[Session]:
    """The sessions; where an id comes again (several trials of a task), it gets a number."""
    counts: Counter[str] = Counter()
    named: list[Session] = []
    for session in sessions:
        counts[session.id] += 1
        again = counts[session.id]
        named.append(session if again == 1 else replace(session, id=f"{session.id}#{again}"))
    return named


class _Lines:
    """The lines of a file that are not blank, counted, the first of them looked at in advance."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        self.number = 0

    def peek(self) -> bytes:
        """The first line."""
        try:
            self.number, self._first = next(self._lines)
        except StopIteration:
            raise ConfigError(f"{self._path} is empty; a workload has a JSON record on each line") from None
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{self._path} cannot be read: {error}") from None
        return self._first

    def records(self, record: type) -> Iterator[Any]:
        """All lines as records, from the first."""
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(record)
        yield decoder.decode(self._first)
        for self.number, line in self._lines:  # noqa: B020
            yield decoder.decode(line)


def _open(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path} cannot be opened: {error.strerror}") from None
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    file.close()
    return cast(BinaryIO, gzip.open(path))


def _recognise(path: Path, line: bytes) -> _Format:
    try:
        first = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON lines: {error}") from None
    fields = set(first) if isinstance(first, dict) else set()
    for trace in _FORMATS:
        if trace.fields <= fields:
            return trace
    known = "; ".join(", ".join(sorted(trace.fields)) for trace in _FORMATS)
    found = ", ".join(sorted(fields)) or "no JSON object"
    raise ConfigError(f"{path} is no workload in a known format. Its first record has {found}; known are: {known}")


def _no_tokenizer(text: str) -> list[int]:
    raise ConfigError("this trace holds texts, which need a tokenizer")
