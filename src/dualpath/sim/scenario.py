"""What is simulated: one TOML file, one flat table and a list of faults."""

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from dualpath.core.errors import ConfigError


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that breaks at `at_s` and is whole again after `for_s` (None: never).

    `node`: the node's agent and engines are gone. `snic`, `cnic`: its NICs run at `factor` of their rate.
    """

    node: str
    at_s: float
    for_s: float | None = None
    part: Literal["node", "snic", "cnic"] = "node"
    factor: float = 0.1


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cluster, its agents, and what decides. Rates and sizes of hardware and model come from their data files."""

    # the cluster
    topology: str = "1P1D"  # nodes
    hardware: str = "hopper"  # a data file's name, or a file
    model: str = "deepseek-v3.2"  # a data file's name, a file, or a Hugging Face config.json
    profile: str | None = None  # measured rates and times of a live cluster (dualpath calibrate), instead of both
    block_tokens: int = 64

    # the agents
    workload: str = "paper-64k"  # a preset or a trace file
    agents: int = 8
    turns: int | None = None  # each agent's first; None: all
    shrink: int = 1
    max_context: int | None = None
    append_factor: float = 1.0
    gen_factor: float = 1.0
    aps: float | None = None  # agents a second; None: all start together
    think: bool = False  # wait between turns as recorded; always when aps is given
    warm: bool = False  # first prompts are on storage before the clock starts
    seed: int = 0

    # what decides
    read_policy: str = "shorter-queue"
    prefill_policy: str = "least-tokens-short-queue"
    layerwise: bool = True  # False: a prefill engine holds all layers of a batch (the paper's Basic)
    oracle: bool = False  # no storage reads, no host-device copies, no transfers between nodes
    handover: Literal["layerwise", "pull"] = "layerwise"  # hits reach the decode node through prefill, or by its pull
    attention_quota_ms: float = 300.0  # 0: batches are filled up to the window
    retain_bytes: float = 0.0  # DRAM of each decode node that keeps blocks of finished requests

    faults: tuple[Fault, ...] = ()


def read_scenario(file: Path) -> Scenario:
    """ConfigError, in words, when the file is not a scenario."""
    try:
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Scenario)
    except OSError as error:
        raise ConfigError(f"cannot read the scenario {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no scenario: {error}") from None
