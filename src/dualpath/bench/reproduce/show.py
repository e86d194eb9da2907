"""What the command prints: progress while it simulates, then all numbers."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from dualpath.bench.reproduce.figure import Row
from dualpath.bench.reproduce.page import NEAR, difference_text, number_text
from dualpath.bench.reproduce.runner import Progress


class Display:
    """One bar; silent unless stderr is a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        counted = TextColumn("runs, {task.fields[requests]:,} requests")
        self._bars = Bars(
            TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), counted, TimeElapsedColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bars.add_task("", total=None, requests=0)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, progress: Progress) -> None:
        """How far it is; a search may need more runs later."""
        self._bars.update(self._task, completed=progress.done, total=progress.needed, requests=progress.requests)


def table(rows: Sequence[Row], title: str) -> Table:
    """Paper, ours and the difference of every number."""
    shown = Table("figure", "number", title=title)
    for name in ("paper", "ours", "difference"):
        shown.add_column(name, justify="right")
    for row in rows:
        style = "" if row.difference is None else "green" if abs(row.difference) <= NEAR else "red"
        cells = (row.figure, row.name, number_text(row.paper), number_text(row.ours))
        shown.add_row(*cells, f"[{style}]{difference_text(row)}[/]" if style else "-")
    return shown


def reasons(rows: Sequence[Row]) -> list[str]:
    """Numbers that are not near the paper's, or missing, below what was assumed for them."""
    far: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.ours is None or (row.difference is not None and abs(row.difference) > NEAR):
            far.setdefault((row.figure, row.assumption), []).append(row)
    lines = []
    for (figure, assumption), those in far.items():
        lines.append(f"{figure}: {assumption}")
        lines += [f"  {difference_text(row)}  {row.name}" for row in those]
    return lines
