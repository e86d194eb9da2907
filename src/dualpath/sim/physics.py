"""The numbers that a simulated cluster obeys: rates and sizes of a node, times of an engine.

Either from data files (hardware and model) or from a profile measured on a live cluster.
"""

import math
from pathlib import Path
from typing import Protocol

import msgspec

from dualpath.core.units import parse_rate
from dualpath.policy.batch import AttentionTime
from dualpath.sim.engine_time import EngineTime
from dualpath.sim.hardware import load_hardware
from dualpath.sim.models import load_model
from dualpath.sim.profile import Profile, read_profile
from dualpath.sim.scenario import Scenario

UNLIMITED = math.inf


class StepTimes(Protocol):
    """What batches cost: computed (EngineTime) or measured (MeasuredTime)."""

    @property
    def attention(self) -> AttentionTime:
        """Predicted time of a chunk, all layers: what the compute quota is held against."""

    @property
    def prefill_group_engines(self) -> int:
        """Prefill engines that step together."""

    @property
    def decode_group_engines(self) -> int:
        """Decode engines that step together."""

    @property
    def layers(self) -> int:
        """Of the model."""

    def prefill_step_ns(self, attention_ns: list[float], new_tokens: list[int]) -> int:
        """One forward pass of a prefill group."""

    def decode_step_ns(self, requests: list[int], context_tokens: list[int]) -> int:
        """One decode step of a decode group."""

    def prefill_window_tokens(self, layerwise: bool) -> int:
        """KV that fits a prefill engine."""

    def decode_kv_tokens(self) -> int:
        """KV that fits a decode engine."""


class Physics(msgspec.Struct, kw_only=True):
    """A node of either role, and its engines. Rates in bytes a second, each direction."""

    times: StepTimes
    kv_bytes_per_token: float
    engines: int  # of a node
    snic_bytes_per_s: float
    snic_efficiency: float = 1.0  # already in snic_bytes_per_s; for a rate that a scenario gives
    cnic_bytes_per_s: float  # of one engine
    dram_bytes_per_s: float
    write_share: float = 0.0  # of a decode node's buffer: only for write-back
    storage_bytes_per_s: float = UNLIMITED  # of all nodes together
    buffer_bytes: float  # DRAM for blocks
    message_ns: int = 0  # a transfer's cost on a CNIC besides its bytes
    read_latency_ns: int = 0  # of one block
    read_concurrency: int = 64  # blocks outstanding a node
    progress_blocks: int = 0  # a node tells of its reads after so many blocks; 0: when a request's are done
    submit_ns: int = 0  # from the agent to the scheduler
    load_ns: int = 0  # from the last block's read until its request may be queued
    handoff_ns: int = 0  # from the prefill's end, besides the copy, until the decode engine has the request
    reply_ns: int = 0  # from the last token to the agent


def physics_of(scenario: Scenario) -> Physics:
    """The scenario's numbers; ConfigError when a data file is missing or wrong."""
    if scenario.profile:
        physics = physics_of_profile(read_profile(Path(scenario.profile).expanduser()))
    else:
        physics = _computed(scenario)
    if scenario.snic:
        physics.snic_bytes_per_s = physics.snic_efficiency * (parse_rate(scenario.snic) or UNLIMITED)
    if scenario.cnic:
        physics.cnic_bytes_per_s = parse_rate(scenario.cnic) or UNLIMITED
    return _oracle(physics) if scenario.oracle else physics


def _computed(scenario: Scenario) -> Physics:
    hardware, model = load_hardware(scenario.hardware), load_model(scenario.model)
    return Physics(
        times=EngineTime(hardware, model, topology=scenario.topology), kv_bytes_per_token=model.kv_bytes_per_token,
        engines=hardware.gpus, snic_bytes_per_s=hardware.snic_efficiency * hardware.snic_bytes_per_s,
        snic_efficiency=hardware.snic_efficiency, cnic_bytes_per_s=hardware.cnic_bytes_per_s,
        dram_bytes_per_s=hardware.dram_bytes_per_s, buffer_bytes=hardware.buffer_bytes(model.name),
        message_ns=hardware.message_ns, submit_ns=hardware.submit_ns, reply_ns=hardware.reply_ns,
    )  # fmt: skip


def physics_of_profile(profile: Profile) -> Physics:
    """The live cluster that was measured; its DRAM never binds."""
    return Physics(
        times=profile.times, kv_bytes_per_token=profile.kv_bytes_per_token, engines=profile.engines,
        snic_bytes_per_s=profile.snic_efficiency * profile.snic_bytes_per_s,
        snic_efficiency=profile.snic_efficiency, cnic_bytes_per_s=profile.cnic_bytes_per_s,
        dram_bytes_per_s=UNLIMITED, buffer_bytes=profile.buffer_bytes, write_share=profile.write_share,
        read_concurrency=profile.read_concurrency,
        progress_blocks=1, submit_ns=profile.submit_ns, load_ns=profile.load_ns, handoff_ns=profile.handoff_ns,
    )  # fmt: skip


def _oracle(physics: Physics) -> Physics:
    """The paper's Oracle: KV is where it is needed, at once (section 6)."""
    return msgspec.structs.replace(
        physics, snic_bytes_per_s=UNLIMITED, cnic_bytes_per_s=UNLIMITED, dram_bytes_per_s=UNLIMITED,
        storage_bytes_per_s=UNLIMITED, read_latency_ns=0, message_ns=0,
    )  # fmt: skip
