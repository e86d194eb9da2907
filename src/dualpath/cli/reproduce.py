"""The reproduce command."""

import os
from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    figure: Annotated[
        list[str] | None,
        typer.Argument(help="cache-compute, offline, pd, append, online, ablation, balance, scale, working-set, "
                       "beyond. All without names."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="First turns only, fewer points: minutes, not hours.")] = False,
    html: Annotated[Path, typer.Option(help="File for the report.")] = Path("dualpath-reproduce.html"),
    json: Annotated[Path | None, typer.Option(help="File for all rows.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes; one a core unless given.", min=1)] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps finished runs.  [~/.cache/dualpath]")] = None,
) -> None:  # fmt: skip
    """Simulate the paper's evaluation and compare every number.

    Prints paper, ours and the difference, and writes a report with plots. Finished runs are kept: a second call goes on
    where an interrupted one was.
    """
    from rich.console import Console

    from dualpath.bench.experiment import check_output
    from dualpath.bench.reproduce import reproduce as command
    from dualpath.bench.reproduce.cache import Cache, default_folder, source_hash
    from dualpath.bench.reproduce.page import count_words, page
    from dualpath.bench.reproduce.show import reasons, table
    from dualpath.bench.results import write_json
    from dualpath.launch.signals import end_like_ctrl_c

    end_like_ctrl_c()
    figures = command.chosen(figure or [])
    for file in (html, json):
        if file:
            check_output(file)
    kept = Cache(cache or default_folder(), source_hash())
    cores = len(os.sched_getaffinity(0))
    report = command.reproduce(figures, quick=quick, jobs=jobs or cores, cache=kept)
    if json:
        write_json(json, {"rows": report.rows})
    html.write_text(page(report), encoding="utf-8")
    console = Console(highlight=False)
    console.print(table(report.rows, "quick set: first turns only" if quick else "the paper, simulated"))
    for line in [*reasons(report.rows), count_words(report.rows), f"report: {html}"]:
        console.print(line, markup=False, soft_wrap=True)
