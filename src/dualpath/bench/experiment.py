"""What a replay compares, checked before anything starts, and the cluster that each policy gets."""

import tempfile
from pathlib import Path

import msgspec
from msgspec.structs import replace

from dualpath.core.config import Config
from dualpath.core.errors import ConfigError
from dualpath.policy.read import READ_POLICIES
from dualpath.workload import PRESETS

UNTHROTTLED = "unthrottled"  # split with every throttle off: what is left when storage costs nothing


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks what, in which order of policies. The cluster itself is a Config."""

    workload: str  # a preset's name or a file
    policies: tuple[str, ...]
    agents: int
    turns: int | None = None  # each agent's first; None: all
    shrink: int = 1
    max_context: int | None = None  # a session ends before its first longer turn
    seed: int = 0
    warm: bool = True  # first prompts are durable before the clock starts
    aps: float | None = None  # agents a second; None: all start together
    think: bool = False  # wait between turns as recorded; always when aps is given
    pairs: int = 1  # times that the list of policies is run, interleaved


def check(experiment: Experiment, config: Config) -> None:
    """ConfigError when the experiment cannot be run."""
    _check_workload(experiment.workload)
    known = [*READ_POLICIES, UNTHROTTLED]
    for policy in experiment.policies:
        if policy not in known:
            raise ConfigError(f"no read policy {policy!r}; there are {', '.join(known)}")
    if UNTHROTTLED in experiment.policies and config.storage.pacing == "network":
        raise ConfigError(f"{UNTHROTTLED} cannot run here: the network holds the NICs to their rates; leave it out")
    if not experiment.policies or len(set(experiment.policies)) < len(experiment.policies):
        raise ConfigError("--read-policy takes a list of different policies; --pairs runs the list several times")
    if experiment.aps is not None and experiment.aps <= 0:
        raise ConfigError(f"--aps {experiment.aps:g}: an arrival rate is positive; leave it out to start all together")


def _check_workload(name: str) -> None:
    if name not in PRESETS and not Path(name).expanduser().is_file():
        raise ConfigError(f"no workload {name!r}: neither a file nor one of {', '.join(sorted(PRESETS))}")


def check_output(file: Path) -> None:
    """Make the folder of a result's file and try to write there; ConfigError when that cannot be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise ConfigError(f"{file} is a folder; name a file")
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None


def cluster_config(config: Config, policy: str) -> Config:
    """A cluster of its own for one policy, on any free port, with a private run folder."""
    unthrottled = policy == UNTHROTTLED
    storage = replace(config.storage, snic="none", cnic="none") if unthrottled else config.storage
    return replace(
        config,
        storage=storage,
        scheduling=replace(config.scheduling, read_policy="split" if unthrottled else policy),
        network=replace(config.network, host="127.0.0.1", port=0, api_key="", run_dir=""),
    )
