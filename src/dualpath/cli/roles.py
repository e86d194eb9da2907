"""The roles as commands, one process each. `up` starts them all; they can also be started by hand."""

import logging
from typing import Annotated

import typer

from dualpath.cli.options import with_config
from dualpath.core.config import Config
from dualpath.core.errors import ConfigError
from dualpath.core.ids import EngineId, NodeId
from dualpath.launch import lifeline


@with_config
def scheduler(config: Config) -> None:
    """Run the scheduler: decides who prefills, who decodes, who reads."""
    _begin(config)
    from dualpath.scheduler.main import run

    run(config)


@with_config
def gateway(config: Config) -> None:
    """Run the HTTP server with OpenAI's API."""
    _begin(config)
    from dualpath.gateway.main import run

    run(config)


@with_config
def agent(config: Config, node: Annotated[str, typer.Argument(help="Node, such as p0 or d1.")]) -> None:
    """Run a node's agent: DRAM buffer, storage reads and writes, transfers."""
    _begin(config)
    if node not in config.nodes:
        raise ConfigError(f"no node {node!r}; there are {', '.join(config.nodes)}")
    from dualpath.node.main import run

    run(config, NodeId(node))


@with_config
def engine(config: Config, engine: Annotated[str, typer.Argument(help="Engine, such as p0/0.")]) -> None:
    """Run an engine: prefill on a node p, decode on a node d."""
    _begin(config)
    if engine not in config.engines:
        raise ConfigError(f"no engine {engine!r}; there are {', '.join(config.engines)}")
    if config.engine.kind == "vllm":
        from dualpath.vllm.main import run
    else:
        from dualpath.engine.main import run
    run(config, EngineId(engine))


def _begin(config: Config) -> None:
    """What every role does first, before slow imports: die with the launcher, log in one form."""
    lifeline.watch()
    logging.basicConfig(
        level=config.log.level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
