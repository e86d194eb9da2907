"""From names of figures to rows and a report."""

from collections.abc import Sequence

from dualpath.bench.reproduce.cache import Cache
from dualpath.bench.reproduce.figure import Figure, rows
from dualpath.bench.reproduce.figures import FIGURES
from dualpath.bench.reproduce.page import Report
from dualpath.bench.reproduce.runner import Runner
from dualpath.bench.reproduce.show import Display
from dualpath.core.errors import ConfigError


def chosen(names: Sequence[str]) -> list[Figure]:
    """The named figures in the paper's order; all without names. ConfigError for a name that there is not."""
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise ConfigError(f"no figure {unknown[0]!r}; there are {', '.join(FIGURES)}")
    return [figure for name, figure in FIGURES.items() if not names or name in names]


def reproduce(figures: Sequence[Figure], *, quick: bool, jobs: int, cache: Cache) -> Report:
    """Simulate what is not in the cache, and compare."""
    with Display() as display:
        results = Runner(cache, jobs, display.show).run(figures, quick)
    return Report(
        figures=figures, rows=[row for figure in figures for row in rows(figure, results, quick)],
        plots={figure.name: figure.plots(results, quick) for figure in figures}, quick=quick, version=cache.version,
    )  # fmt: skip
