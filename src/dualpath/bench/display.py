"""What a replay shows: live progress on a terminal, and the table at the end."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dualpath.bench.experiment import UNTHROTTLED
from dualpath.bench.results import Run, median_of, wire_over_read
from dualpath.core.units import format_bytes

CLOSE_LOGITS = 1e-3  # two logits this close may change places by rounding

Figure = Callable[[Run], float | None]
_MS = "{:.1f} ms"


def _ms(name: str) -> Figure:
    def figure(run: Run) -> float | None:
        value = getattr(run, name)
        return None if value is None else value * 1e3

    return figure


_ROWS: list[tuple[str, str | Callable[[float], str], Figure]] = [
    ("JCT", "{:.2f} s", lambda run: run.jct_s),
    ("TTFT p50", _MS, _ms("ttft_p50_s")),
    ("TTFT p99", _MS, _ms("ttft_p99_s")),
    ("TTST p50", _MS, _ms("ttst_p50_s")),
    ("TTST p99", _MS, _ms("ttst_p99_s")),
    ("TPOT p50", _MS, _ms("tpot_p50_s")),
    ("TPOT p99", _MS, _ms("tpot_p99_s")),
    ("hit rate", "{:.4f}", lambda run: run.hit_rate),
    ("hit rate, blocks", "{:.4f}", lambda run: run.hit_rate_blocks),
    ("SNIC utilisation", "{:.3f}", lambda run: run.snic_utilisation),
    ("SNIC max/avg", "{:.3f}", lambda run: run.snic_max_over_avg),
    ("CNIC, busiest way", "{:.3f}", lambda run: run.cnic_peak),
    ("SNIC wire / read", "{:.3f}", wire_over_read),
    ("read, prefill side", format_bytes, lambda run: run.bytes_read.prefill),
    ("read, decode side", format_bytes, lambda run: run.bytes_read.decode),
    ("retained", format_bytes, lambda run: run.bytes_retained),
    ("CPU", "{:.1f} s", lambda run: sum(run.cpu_s.values())),
    ("recomputes", "{:.0f}", lambda run: sum(run.recomputes.values())),
    ("errors", "{:.0f}", lambda run: run.errors),
]


def table(runs: Sequence[Run], speedup: dict[str, float]) -> Table:
    """A column a policy, a row a figure; medians where a policy ran several times."""
    shown = Table("", title=f"{runs[0].topology}, {runs[0].turns} turns")
    for policy in speedup:
        shown.add_column(policy, justify="right")
    for name, form, figure in _ROWS:
        values = [median_of([run for run in runs if run.policy == policy], figure) for policy in speedup]
        shown.add_row(name, *(_text(value, form) for value in values))
    shown.add_row("speed-up", *(f"{factor:.2f} x" for factor in speedup.values()))
    return shown


def remarks(runs: Sequence[Run], speedup: dict[str, float]) -> list[str]:
    """What the table cannot say."""
    first = runs[0].policy
    lines = []
    if UNTHROTTLED in speedup and first != UNTHROTTLED:
        lines.append(f"{UNTHROTTLED} is {speedup[UNTHROTTLED]:.2f} times as fast as {first}")
    found = [divergence for run in runs for divergence in run.divergences]
    apart = sum(divergence.logit_gap > CLOSE_LOGITS for divergence in found)
    lines.append(
        f"{len(found)} sessions left the tokens of the first run, {apart} of them where the two best logits are more "
        f"than {CLOSE_LOGITS:g} apart"
        if found
        else "all runs gave the same tokens"
    )
    lines += [f"{run.policy}: {message}" for run in runs for message in run.error_messages]
    lines += [f"{run.policy}: {role} died during the run" for run in runs for role in run.restarted]
    return lines


def _text(value: float | None, form: str | Callable[[float], str]) -> str:
    if value is None:
        return "-"
    return form.format(value) if isinstance(form, str) else form(value)


class Display:
    """A line a run: turns done, JCT so far, time left. Silent unless stderr is a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("turns"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def line(self, name: str, total: int) -> "Line":
        """A new line; its clock stands still until `begin`."""
        return Line(self._progress, name, total)


class Line:
    """One run's progress."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress = progress
        self._name = name
        self._task = progress.add_task(f"{name}: starting", total=total, start=False)

    def begin(self) -> None:
        """The clock starts."""
        self._progress.start_task(self._task)
        self._progress.update(self._task, description=self._name)

    def advance(self, turns: int = 1) -> None:
        """So many more turns are done."""
        self._progress.advance(self._task, turns)

    def end(self) -> None:
        """The clock stops."""
        self._progress.stop_task(self._task)
