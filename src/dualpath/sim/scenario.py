"""What is simulated: one TOML file, one flat table and a list of faults."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from dualpath.core.errors import ConfigError
from dualpath.policy.prefill import PREFILL_POLICIES
from dualpath.policy.read import READ_POLICIES


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
    snic: str = ""  # a storage NIC's rate, such as 20MB/s or 400Gbit/s, instead of theirs
    cnic: str = ""  # a compute NIC's
    block_tokens: int = 64

    # the agents
    workload: str = "paper-64k"  # a preset or a trace file
    agents: int = 8
    tokenizer: str | None = None  # a tokenizer.json, for traces of text
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
    overtake_limit: int = 0  # requests that may pass one whose slots are not free; the paper's queue is FIFO
    retain_bytes: float = 0.0  # DRAM of each decode node that keeps blocks of finished requests

    faults: tuple[Fault, ...] = ()


def read_scenario(file: Path) -> Scenario:
    """ConfigError, in words, when the file is not a scenario."""
    try:
        return scenario_from(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read the scenario {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no scenario: {error}") from None


def scenario_from(values: Mapping[str, object]) -> Scenario:
    """ConfigError, in words, when the values are no scenario."""
    try:
        scenario = msgspec.convert(values, Scenario)
    except msgspec.ValidationError as error:
        raise ConfigError(f"no scenario: {error}") from None
    check(scenario)
    return scenario


def system(scenario: Scenario, name: str) -> Scenario:
    """The same cluster and agents under another system: a read policy, or the paper's Basic or Oracle (section 6).

    Basic reads with prefill nodes only, holds all layers of a batch, and spreads requests in turn.
    """
    if name == "basic":
        return replace(
            scenario, read_policy="prefill-only", prefill_policy="round-robin", layerwise=False, oracle=False
        )
    if name == "oracle":
        return replace(scenario, oracle=True)
    return replace(scenario, read_policy=name, oracle=False)


def system_of(scenario: Scenario) -> str:
    """The name under which its figures are shown."""
    if scenario.oracle:
        return "oracle"
    basic = not scenario.layerwise and scenario.read_policy == "prefill-only"
    return "basic" if basic else scenario.read_policy


def check(scenario: Scenario) -> None:
    """ConfigError, in words, for values that no run can have."""
    for value, known, what in (
        (scenario.read_policy, READ_POLICIES, "read policy"),
        (scenario.prefill_policy, PREFILL_POLICIES, "prefill policy"),
    ):
        if value not in known:
            raise ConfigError(f"no {what} {value!r}; there are {', '.join(known)}")
    for name in ("agents", "block_tokens", "shrink", "append_factor", "gen_factor"):
        if getattr(scenario, name) <= 0:
            raise ConfigError(f"{name} = {getattr(scenario, name)}; give a positive number")
    if scenario.aps is not None and scenario.aps <= 0:
        raise ConfigError(f"aps = {scenario.aps}: an arrival rate is positive; leave it out to start all together")
    for name in ("attention_quota_ms", "retain_bytes", "overtake_limit"):
        if getattr(scenario, name) < 0:
            raise ConfigError(f"{name} = {getattr(scenario, name)}; give at least 0")


def with_changes(scenario: Scenario, changes: Sequence[str]) -> Scenario:
    """Values given as text, "agents=512", in place of the scenario's; ConfigError."""
    values = msgspec.to_builtins(scenario)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in values:
            raise ConfigError(f"cannot set {change!r}; write name=value with one of {', '.join(values)}")
        try:
            values[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name] = text
    return scenario_from(values)
