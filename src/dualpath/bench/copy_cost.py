"""CPU seconds a GB of every leg between storage and engine: python -m dualpath.bench.copy_cost.

What each leg is, and what the figures say, is in docs/design/copy-cost.md.
"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from dualpath.bench.copy_engine import DecodeLegs
from dualpath.bench.copy_legs import Figure, Leg, layout_of, measure
from dualpath.bench.copy_memory import MEMCPY, arena_of, memory_legs
from dualpath.bench.copy_peer import transfer_legs
from dualpath.bench.copy_store import folder_legs, url_legs
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.core.units import parse_bytes

TRANSPORTS = ("shm", "tcp", "nixl")


class CopyCost(msgspec.Struct, frozen=True):
    """All figures of one run."""

    block_bytes: int
    total_bytes: int  # a leg and round
    rounds: int
    figures: list[Figure]
    left_out: list[str]  # legs that this host does not have, and why


async def copy_cost(
    block_bytes: int, total_bytes: int, rounds: int, folder: Path | None, stores: Sequence[str]
) -> CopyCost:
    """Measure all legs that this host has; takes about five times `total_bytes` of memory and twice of `folder`."""
    layout, left_out = layout_of(block_bytes, f"copy-cost-{secrets.token_hex(8)}"), list[str]()
    async with AsyncExitStack() as ends:
        arena, other = (ends.enter_context(arena_of(layout, total_bytes)) for _ in range(2))
        legs: list[Leg] = ends.enter_context(memory_legs(arena, other))
        place = ends.enter_context(tempfile.TemporaryDirectory(prefix="dualpath-copy-cost-", dir=folder))
        legs += await ends.enter_async_context(folder_legs(Path(place), arena))
        for url in stores:
            legs += await ends.enter_async_context(url_legs(url, layout, arena))
        for kind in TRANSPORTS:
            try:
                legs += await ends.enter_async_context(transfer_legs(kind, arena))
            except ConfigError as error:
                left_out.append(f"{kind}: {error}")
        legs += DecodeLegs(arena).legs()
        figures = await measure(legs, rounds)
        del legs
    return CopyCost(block_bytes, total_bytes, rounds, figures, left_out)


def table_of(cost: CopyCost) -> Table:
    """The figures for people; the last column is the sum of both processes over this machine's bare copy."""
    unit = next(figure.cpu_s_per_gb for figure in cost.figures if figure.leg == MEMCPY)
    table = Table(title="CPU seconds a GB (user and system)")
    table.add_column("leg", no_wrap=True)
    for name in ("here", "least..most", "peer", "memcpys"):
        table.add_column(name, justify="right")
    for figure in cost.figures:
        peer = figure.peer_cpu_s_per_gb
        table.add_row(
            figure.leg, f"{figure.cpu_s_per_gb:.3f}", f"{figure.least:.2f}..{figure.most:.2f}",
            "" if peer is None else f"{peer:.3f}", f"{(figure.cpu_s_per_gb + (peer or 0)) / unit:.1f}",
        )  # fmt: skip
    return table


def main(
    block: Annotated[str, typer.Option(help="Size of a full block.")] = "512KiB",
    total: Annotated[str, typer.Option(help="Bytes a leg and round; beyond the CPU's cache.")] = "512MB",
    rounds: Annotated[int, typer.Option(help="Rounds, of which the median counts.", min=1, max=100)] = 5,
    folder: Annotated[Path | None, typer.Option(help="Where the file store's blocks go for the time.")] = None,
    store: Annotated[list[str] | None, typer.Option(help="URL of a bucket to measure too; may be repeated.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Measure the CPU seconds a GB of every leg of a byte's way between storage and engine."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        cost = asyncio.run(copy_cost(parse_bytes(block), parse_bytes(total), rounds, folder, store or []))
        if json:
            json.write_bytes(msgspec.json.format(msgspec.json.encode(cost)))
    except (DualPathError, OSError) as error:
        typer.echo(f"copy_cost: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    console = Console()
    console.print(table_of(cost))
    for line in cost.left_out:
        console.print(f"left out: {line}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
