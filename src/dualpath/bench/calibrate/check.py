"""Predicted against measured, over settings that the profile was not made from."""

import math
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from dualpath.bench.experiment import Experiment
from dualpath.bench.replay import Result
from dualpath.bench.results import speedups
from dualpath.bench.simulate import simulate
from dualpath.core.config import Config
from dualpath.sim.physics import Physics, physics_of_profile
from dualpath.sim.profile import Profile
from dualpath.sim.scenario import Scenario


class Setting(msgspec.Struct, frozen=True):
    """What differs from the calibrated run."""

    topology: str
    snic: str
    agents: int


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's run; speed-ups are over the first policy of the same setting."""

    setting: Setting
    policy: str
    measured_s: float
    predicted_s: float
    measured_gain: float
    predicted_gain: float
    cpu_share: float  # of the machine's cores, over the JCT

    @property
    def error(self) -> float:
        """Of the predicted JCT."""
        return self.predicted_s / self.measured_s - 1

    @property
    def gain_error(self) -> float:
        """Of the predicted speed-up."""
        return self.predicted_gain / self.measured_gain - 1


def predict(profile: Profile, config: Config, experiment: Experiment, policy: str) -> float:
    """The JCT of a replay, in seconds."""
    return simulate(_scenario(profile, config, experiment, policy), physics=_physics(profile, config)).run.jct_s


def compare(
    profile: Profile, config: Config, setting: Setting, experiment: Experiment, result: Result
) -> list[Comparison]:
    """A live replay's runs against their predictions."""
    policies = list(dict.fromkeys(run.policy for run in result.runs))
    predicted = {policy: predict(profile, config, experiment, policy) for policy in policies}
    gains = speedups(result.runs)
    measured = {run.policy: run for run in result.runs}
    return [
        Comparison(
            setting=setting, policy=policy, measured_s=measured[policy].jct_s, predicted_s=predicted[policy],
            measured_gain=gains[policy], predicted_gain=predicted[policies[0]] / predicted[policy],
            cpu_share=sum(measured[policy].cpu_s.values()) / measured[policy].jct_s / result.cores,
        )
        for policy in policies
    ]  # fmt: skip


def check_settings(
    profile: Profile, config: Config, experiment: Experiment, settings: Sequence[Setting],
    replay: Callable[[Config, Experiment], Result],
) -> list[Comparison]:  # fmt: skip
    """Replay every setting and compare."""
    found: list[Comparison] = []
    for setting in settings:
        own = replace(
            config, cluster=replace(config.cluster, topology=setting.topology),
            storage=replace(config.storage, snic=setting.snic),
        )  # fmt: skip
        asked = replace(experiment, agents=setting.agents)
        found += compare(profile, own, setting, asked, replay(own, asked))
    return found


def _scenario(profile: Profile, config: Config, experiment: Experiment, policy: str) -> Scenario:
    return Scenario(
        topology=config.cluster.topology, workload=experiment.workload, agents=experiment.agents,
        turns=experiment.turns, shrink=experiment.shrink, max_context=experiment.max_context, seed=experiment.seed,
        aps=experiment.aps, think=experiment.think, warm=experiment.warm, read_policy=policy,
        prefill_policy=config.scheduling.prefill_policy, handover="pull", block_tokens=profile.block_tokens,
        attention_quota_ms=config.scheduling.quota_ms,
        overtake_limit=config.scheduling.overtake_limit,
    )  # fmt: skip


def _physics(profile: Profile, config: Config) -> Physics:
    rates = {"snic_bytes_per_s": config.snic_bytes_per_s, "cnic_bytes_per_s": config.cnic_bytes_per_s}
    own = {name: rate or math.inf for name, rate in rates.items()}
    return physics_of_profile(replace(profile, engines=config.cluster.engines_per_node, **own))
