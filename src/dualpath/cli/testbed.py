"""The testbed commands: a cluster's hosts as network namespaces of this machine."""

from typing import Annotated

import typer

from dualpath.core.config import CONTROL
from dualpath.core.errors import ConfigError
from dualpath.core.units import parse_rate
from dualpath.testbed.layout import Layout

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Option(help="Testbeds of different names run side by side.")]
Topology = Annotated[str, typer.Option(help="Prefill and decode nodes: 2P4D is two and four.")]
Snic = Annotated[str, typer.Option(help="Rate of every storage NIC, or none.")]
Cnic = Annotated[str, typer.Option(help="Rate of every compute NIC; empty: 8 times the storage NIC.")]
Storage = Annotated[str, typer.Option(help="s3: an S3 service. mount: a JuiceFS file system on every node.")]
Lanes = Annotated[bool, typer.Option(help="Whether the compute network serves model traffic first.")]


@app.callback()
def testbed() -> None:
    """Run a cluster on hosts of its own: network namespaces with shaped storage and compute NICs (root).

    The storage host runs a real S3 service. What a testbed made is gone after it, also after a crash.
    """


@app.command()
def up(
    name: Name = "main", topology: Topology = "1P1D", snic: Snic = "100Mbit/s", cnic: Cnic = "",
    storage: Storage = "s3", lanes: Lanes = True,
) -> None:  # fmt: skip
    """Make a testbed that stays until `testbed down`."""
    from dualpath.testbed.state import lock
    from dualpath.testbed.testbed import build

    layout = _layout(name, topology, snic, cnic, lanes)
    with lock(name):
        build(layout, storage)
    print(f"testbed {name} is up: {', '.join(layout.hosts)}\ntry: dualpath testbed run --name {name} -- replay --help")


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND ...", help="A dualpath command.")],
    name: Name = "main", topology: Topology = "1P1D", snic: Snic = "100Mbit/s", cnic: Cnic = "",
    storage: Storage = "s3", lanes: Lanes = True,
    host: Annotated[str, typer.Option(help="Where the command runs: control, storage, p0, d0, ...")] = CONTROL,
) -> None:  # fmt: skip
    """Run a dualpath command on a host of a testbed.

    Takes the testbed of this name that is up, whatever the other options say, or makes one for the command. replay and
    up get its hosts and its store as their configuration:

    dualpath testbed run --topology 1P2D -- replay paper-64k --shrink 8
    """
    from dualpath.testbed.session import run_in

    code = run_in(_layout(name, topology, snic, cnic, lanes), storage, host, command)
    raise typer.Exit(code)


@app.command()
def down(name: Name = "main") -> None:
    """Remove a testbed, also what a crash left of one."""
    from dualpath.testbed.network import check_privileges
    from dualpath.testbed.state import folder_of, lock
    from dualpath.testbed.testbed import take_down

    check_privileges()
    folder_of(name)
    with lock(name):
        removed = take_down(name)
    print(f"testbed {name} is gone" if removed else f"there is no testbed {name}")


@app.command()
def cut(
    node: Annotated[str, typer.Argument(help="p0, d0, ...")],
    nic: Annotated[str, typer.Argument(help="snic or cnic.")],
    name: Name = "main",
    seconds: Annotated[float, typer.Option(help="How long.", min=0.0, max=600.0)] = 5.0,
) -> None:
    """Pull the cable of a node's NIC for some seconds, then plug it in again."""
    from dualpath.testbed import faults
    from dualpath.testbed.network import check_privileges
    from dualpath.testbed.state import load

    check_privileges()
    state = load(name)
    if state is None:
        raise ConfigError(f"there is no testbed {name}; make one with: dualpath testbed up --name {name}")
    faults.cut(state.layout, node, nic, seconds)
    print(f"{node} {nic} was down for {seconds:g} s")


def _layout(name: str, topology: str, snic: str, cnic: str, lanes: bool) -> Layout:
    from dualpath.core.config import parse_topology
    from dualpath.testbed.network import check_privileges
    from dualpath.testbed.state import folder_of

    check_privileges()
    folder_of(name)
    parse_topology(topology)
    rate = parse_rate(snic)
    fast = parse_rate(cnic) if cnic else None if rate is None else 8 * rate
    return Layout(name, topology, rate, fast, lanes)
