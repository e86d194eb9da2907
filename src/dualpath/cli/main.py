"""The command line: parse, compose, exit. Commands import what they start only when they run."""

import os
import sys
from typing import Annotated

import typer

from dualpath import __version__
from dualpath.cli.calibrate import calibrate
from dualpath.cli.doctor import doctor
from dualpath.cli.explain import explain
from dualpath.cli.plan import plan
from dualpath.cli.qos import qos
from dualpath.cli.replay import replay
from dualpath.cli.reproduce import reproduce
from dualpath.cli.roles import agent, engine, gateway, scheduler
from dualpath.cli.simulate import simulate
from dualpath.cli.testbed import app as testbed
from dualpath.cli.up import up
from dualpath.core.errors import ConfigError, DualPathError

HELP = """Serve LLM agents from a prefill/decode cluster that reads its KV-cache over both storage NICs.

Examples:

  dualpath up                                  serve SmolLM2 on port 8000

  dualpath up --topology 1P2D --snic 20MB/s    with slow storage NICs

  dualpath up --config examples/dualpath.toml  every value from a file

  dualpath explain ID                          where a request's time went

  dualpath replay --help                       compare read policies

  dualpath doctor --store /mnt/kv              measure this host, say what to change

  dualpath plan --help                         how many nodes of each role, and whether both paths help

  dualpath simulate examples/scenario.toml     predict a cluster that you do not have
"""

app = typer.Typer(name="dualpath", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
for command in (up, replay, simulate, plan, reproduce, calibrate, explain, qos, doctor):
    app.command()(command)
app.add_typer(testbed, name="testbed")
for command in (scheduler, gateway, agent, engine):
    app.command(rich_help_panel="Roles, one process each (up starts them)")(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dualpath {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of dualpath itself."""


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 failed, 2 wrong input (with one plain line that says what)."""
    try:
        app(prog_name="dualpath")
    except ConfigError as error:
        _fail(error, code=2)
    except DualPathError as error:
        _fail(error, code=1)
    except BrokenPipeError:  # the reader of our output has gone; point stdout elsewhere for the flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(error: DualPathError, *, code: int) -> None:
    print(f"dualpath: error: {error}", file=sys.stderr, flush=True)
    sys.exit(code)
