"""Text for operators: configuration in sections, each with a word why, printed to read or as a shell script."""

import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Section(NamedTuple):
    """Lines that belong together: shell commands, or the content of a file."""

    title: str
    why: Sequence[str]
    lines: Sequence[str]
    file: str = ""  # lines are content for it, to be merged by the operator; none: they are commands


def command_lines(commands: Sequence[Sequence[str]]) -> list[str]:
    """Argument lists as lines of a shell."""
    return [shlex.join(command) for command in commands]


def as_text(sections: Sequence[Section]) -> str:
    """All sections to read."""
    return "\n\n".join("\n".join(_text(section)) for section in sections) + "\n"


def as_shell(sections: Sequence[Section]) -> str:
    """All sections as a script: commands run, file contents are written to the current folder for review."""
    return "\n\n".join(["#!/bin/sh\nset -e", *("\n".join(_shell(section)) for section in sections)]) + "\n"


def _text(section: Section) -> Iterator[str]:
    title = f"{section.title} (into {section.file})" if section.file else section.title
    yield title
    yield "-" * len(title)
    yield from section.why
    yield ""
    yield from (f"    {line}" for line in section.lines)


def _shell(section: Section) -> Iterator[str]:
    yield f"# {section.title}"
    yield from (f"# {line}" for line in section.why)
    if section.file:
        yield f"cat > {shlex.quote(section.file)} <<'END'"
    yield from section.lines
    if section.file:
        yield "END"
