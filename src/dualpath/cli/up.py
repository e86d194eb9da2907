"""The command that starts a cluster on this machine."""

from dualpath.cli.options import with_config
from dualpath.core.config import Config


@with_config
def up(config: Config) -> None:
    """Start a cluster on this machine and serve until Ctrl-C.

    Starts every role as a process, restarts those that die, and leaves nothing behind at the end.
    """
    from dualpath.launch.up import up as serve

    serve(config)
