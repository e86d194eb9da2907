"""The replay command."""

from dualpath.cli.options import with_config
from dualpath.core.config import Config
from dualpath.core.errors import ServiceError


@with_config
def replay(config: Config) -> None:
    """Run a trace of agents and compare read policies."""
    raise ServiceError("replay is not part of this version yet")
