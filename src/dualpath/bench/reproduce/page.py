"""The report: one HTML file with everything in it."""

from collections.abc import Sequence
from html import escape

import msgspec

from dualpath import __version__
from dualpath.bench.reproduce.figure import Figure, Row
from dualpath.bench.reproduce.plot import Plot
from dualpath.bench.reproduce.size import QUICK_WORDS
from dualpath.bench.reproduce.style import CSS
from dualpath.bench.reproduce.svg import legend, svg

NEAR = 0.10  # of the paper's number

_INTRO = """<p>Every number of the paper's evaluation beside the simulator's, which drives the live scheduler's own
policies over models of NICs, engines and storage. One set of physical constants serves all figures, nothing is tuned
to any of them. The difference is ours / paper - 1. Filled marks are simulated, hollow ones the paper's; each names its
value under the pointer.</p>
<p>The paper's table of agent sets does not multiply out, so each set is read in two ways: by its <b>totals</b> (turns,
total and context tokens hold, appends are shorter) and by its <b>appends</b> (turns and appends hold, contexts grow
longer).</p>
<p><b>Basic</b>: prefill nodes read, prefill engines hold all layers of a request, requests go to prefill engines in
turn. <b>DualPath</b>: the paper's. <b>Oracle</b>: nothing is read or moved.</p>"""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows."""

    figures: Sequence[Figure]
    rows: Sequence[Row]
    plots: dict[str, list[Plot]]  # by figure
    quick: bool
    version: str  # of the source that made the outcomes


def page(report: Report) -> str:
    """Self-contained HTML."""
    links = "".join(f'<a href="#{figure.name}">{escape(figure.name)}</a>' for figure in report.figures)
    quick = f'<p class="warn"><b>Quick set.</b> {escape(QUICK_WORDS)}</p>' if report.quick else ""
    parts = "".join(_section(figure, report) for figure in report.figures)
    end = f'<p class="soft">dualpath {escape(__version__)}, source {escape(report.version[:12])}</p>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>The paper, simulated</title>'
        f"<style>{CSS}</style></head><body><h1>The paper's evaluation, simulated</h1>{quick}{_INTRO}"
        f"{_summary(report.rows)}<nav>{links}</nav>{parts}{end}</body></html>\n"
    )


def count_words(rows: Sequence[Row]) -> str:
    """How many of the paper's numbers are met."""
    given = [row for row in rows if row.paper is not None]
    compared = [row for row in given if row.difference is not None]
    near = sum(abs(row.difference or 0.0) <= NEAR for row in compared)
    failed = sum(row.ours is None for row in rows)
    return (
        f"{near} of the {len(given)} numbers of the paper are within {NEAR:.0%}; "
        f"{len(rows) - len(given)} rows have no number of the paper; {failed} have none of ours"
    )


def number_text(value: float | None) -> str:
    """Four digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def difference_text(row: Row) -> str:
    """In percent, signed."""
    return "-" if row.difference is None else f"{row.difference:+.1%}"


def _summary(rows: Sequence[Row]) -> str:
    return f"<p>{escape(count_words(rows))}.</p>"


def _section(figure: Figure, report: Report) -> str:
    plots = "".join(
        f'<figure>{svg(plot)}<div class="legend">{legend(plot.curves)}</div></figure>'
        for plot in report.plots[figure.name]
    )
    rows = "".join(_table_row(row) for row in report.rows if row.figure == figure.name)
    mark = " (quick)" if report.quick else ""
    return (
        f'<section id="{figure.name}"><h2>{escape(figure.title)}{mark}</h2><p>{escape(figure.setting)}</p>'
        f'<div class="plots">{plots}</div><div class="scroll"><table><thead><tr><th>number</th>'
        '<th class="n">paper</th><th class="n">ours</th><th class="n">difference</th><th>assumption</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _table_row(row: Row) -> str:
    kind = "" if row.difference is None else " near" if abs(row.difference) <= NEAR else " far"
    return (
        f'<tr><td>{escape(row.name)}</td><td class="n">{number_text(row.paper)}</td>'
        f'<td class="n">{number_text(row.ours)}</td><td class="n{kind}">{difference_text(row)}</td>'
        f"<td>{escape(row.assumption)}</td></tr>"
    )
