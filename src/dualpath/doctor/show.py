"""The profile for people: a table a topic, then what to change. Plain text where there is no terminal."""

import shutil
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from dualpath.core.hostprofile import Finding, HostProfile, Link, MemoryRates, Storage
from dualpath.core.units import format_bytes
from dualpath.doctor.link import RAW, link_name
from dualpath.doctor.probe import Probe
from dualpath.doctor.reads import by_concurrency, ratio

_PLAIN_WIDTH = 160
_STYLES = {"ok": "green", "warning": "yellow", "missing": "red"}


class Bar:
    """What is being measured, and how much of all is done; silent unless stderr is a terminal. A context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)

    def __enter__(self) -> "Bar":
        self._progress.start()
        self._task = self._progress.add_task("", total=1.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, what: str, share: float) -> None:
        """As budget.Progress."""
        self._progress.update(self._task, description=what, advance=share)


def show(profile: HostProfile) -> None:
    """Print all of it."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=max(_PLAIN_WIDTH, shutil.get_terminal_size().columns))
    for topic in dict.fromkeys(finding.topic for finding in profile.findings):
        console.print(findings_table(topic, [each for each in profile.findings if each.topic == topic]))
    if profile.memory:
        console.print(memory_table(profile.memory))
    if profile.storage:
        console.print(storage_table(profile.storage))
    for link in profile.links:
        console.print(link_table(link))
    for line in changes(profile.findings):
        console.print(line, soft_wrap=True)


def changes(findings: Iterable[Finding]) -> list[str]:
    """What to change, one line a finding that names something."""
    mends = [f"- {each.name} ({each.value}): {each.mend}" for each in findings if each.mend]
    return ["What to change:", *mends] if mends else ["Nothing to change."]


def show_probe(found: Probe) -> None:
    """What each node carried for one request that came from the store."""
    console = Console(highlight=False, markup=False)
    table = Table("node", "role", title=f"{found.model}: {found.cached_tokens} of {found.prompt_tokens} tokens cached")
    for name in ("read from storage", "kept in DRAM", "layers in", "layers out", "blocks in", "blocks out"):
        table.add_column(name, justify="right")
    for node in found.carried:
        lanes = [node.lanes.get(lane, 0) for lane in ("layers_in", "layers_out", "blocks_in", "blocks_out")]
        table.add_row(node.node, node.role, *(format_bytes(count) for count in (node.read, node.retained, *lanes)))
    console.print(table)
    console.print(f"computed in {found.computed_s:.2f} s, loaded in {found.loaded_s:.2f} s, the same answer: it works")


def findings_table(topic: str, findings: Iterable[Finding]) -> Table:
    """What was looked at."""
    table = Table(topic, "", "found", title_justify="left")
    for finding in findings:
        table.add_row(finding.name, f"{finding.status}", finding.value, style=_STYLES[finding.status])
    return table


def memory_table(rates: MemoryRates) -> Table:
    """Copies and checks."""
    table = Table("memory", Column("rate", justify="right"))
    table.add_row("copy, one thread", per_s(rates.copy_bytes_per_s))
    table.add_row("copy, all cores", per_s(rates.copy_all_cores_bytes_per_s))
    table.add_row("CRC-32, one thread", per_s(rates.crc_bytes_per_s))
    return table


def storage_table(storage: Storage) -> Table:
    """A row a reader and condition, a column a concurrency."""
    concurrencies = sorted({read.concurrency for read in storage.reads})
    title = f"reads of {storage.block_bytes} bytes ({storage.kind})"
    table = Table(title, "reader", *(Column(f"{count} at once", justify="right") for count in concurrencies), "ratio")
    for how, reader in dict.fromkeys((read.how, read.reader) for read in storage.reads):
        rates = by_concurrency(storage.reads, reader, how)
        compared = ratio(storage.reads, how) if reader == "store" else None
        shown = "" if compared is None else f"{compared:.2f}"
        table.add_row(how, reader, *(per_s(rates[count]) for count in concurrencies), shown)
    return table


def link_table(link: Link) -> Table:
    """A row a lane, the bare socket first."""
    operations = list(dict.fromkeys((rate.operation, rate.concurrency) for rate in link.rates))
    head = [Column(f"{name}, {count} at once", justify="right") for name, count in operations]
    table = Table(link_name(link), "round trip p50", "p99", *head)
    rates = {(rate.lane, rate.operation, rate.concurrency): rate.bytes_per_s for rate in link.rates}
    for trip in link.round_trips:
        cells = []
        for name, count in operations:
            reached = rates[trip.lane, name, count]
            compared = f" ({reached / rates[RAW, name, count]:.2f})" if trip.lane != RAW else ""
            cells.append(per_s(reached) + compared)
        table.add_row(trip.lane, f"{trip.p50_ns / 1e3:.0f} us", f"{trip.p99_ns / 1e3:.0f} us", *cells)
    return table


def per_s(rate: float) -> str:
    """A rate for people."""
    return f"{format_bytes(rate)}/s"
