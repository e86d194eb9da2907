"""The simulate command."""

from pathlib import Path
from typing import Annotated

import typer

from dualpath.core.errors import ConfigError


def simulate(
    scenario: Annotated[Path, typer.Argument(help="A TOML file; examples/scenario.toml has all values.")],
    compare: Annotated[
        str | None,
        typer.Option(help="Systems to compare, in order: read policies, basic, oracle. Default: the scenario's own."),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of the scenario: agents=512. May be repeated.")
    ] = None,
    until: Annotated[float | None, typer.Option(help="Stop after so many simulated seconds.", min=0)] = None,
    json: Annotated[Path | None, typer.Option(help="File for all figures, with the keys of replay's.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="File for a trace of the first system, for ui.perfetto.dev.")
    ] = None,
) -> None:
    """Predict a cluster that you do not have: the live policies over models of NICs, engines and storage.

    Examples:

      dualpath simulate examples/scenario.toml --compare basic,shorter-queue,split,oracle

      dualpath simulate examples/scenario.toml --set topology=48P96D --set agents=48000 --json out.json
    """
    from rich.console import Console

    from dualpath.bench import display
    from dualpath.bench.experiment import check_output
    from dualpath.bench.results import write_json
    from dualpath.bench.simulate import simulation
    from dualpath.bench.simulate_show import facts, run_all
    from dualpath.sim.scenario import read_scenario, system, with_changes

    for file in (json, trace):
        if file:
            check_output(file)
    base = with_changes(read_scenario(scenario), change or [])
    names = [name.strip() for name in compare.split(",")] if compare else []
    if len(set(names)) < len(names):
        raise ConfigError("--compare takes a list of different systems")
    scenarios = [system(base, name) for name in names] or [base]
    result = simulation(run_all(scenarios, until_s=until, trace=trace))
    if json:
        write_json(json, result)
    console = Console(highlight=False)
    console.print(display.table(result.runs, result.speedup))
    for line in facts(result):
        console.print(line, markup=False)
