"""A whole calibration: one live run, its profile, and predictions held against other live runs."""

import msgspec
from msgspec.structs import replace

from dualpath.bench.calibrate.check import Comparison, Setting, check_settings
from dualpath.bench.calibrate.fit import fit_profile
from dualpath.bench.experiment import Experiment
from dualpath.bench.replay import measure
from dualpath.bench.replay import replay as live_replay
from dualpath.core.config import Config, parse_topology
from dualpath.core.errors import ConfigError
from dualpath.core.served import served_spec
from dualpath.core.units import parse_rate
from dualpath.launch.folders import settle_folders
from dualpath.sim.profile import Profile

CALIBRATED_POLICY = "shorter-queue"  # reads on both sides, pulls and decode-side loads all occur


class Calibration(msgspec.Struct, kw_only=True):
    """What was measured, and how far predictions are off."""

    profile: Profile
    calibrated_jct_s: float
    comparisons: list[Comparison]
    experiment: Experiment


def calibrate(config: Config, experiment: Experiment, settings: str) -> Calibration:
    """ConfigError before anything starts when settings cannot be read."""
    wanted = parse_settings(settings)
    spec = served_spec(settle_folders(config))
    _, (measured,) = measure(config, replace(experiment, policies=(CALIBRATED_POLICY,)))
    profile = fit_profile(config, spec, measured)
    return Calibration(
        profile=profile, calibrated_jct_s=measured.run.jct_s, experiment=experiment,
        comparisons=check_settings(profile, config, experiment, wanted, live_replay),
    )  # fmt: skip


def parse_settings(text: str) -> list[Setting]:
    """ "1P2D:15MB/s:8,..." as settings; ConfigError in words."""
    settings = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            topology, snic, agents = part.split(":")
            settings.append(Setting(topology, snic, int(agents)))
        except ValueError:
            raise ConfigError(
                f"cannot read setting {part!r}; write TOPOLOGY:SNIC:AGENTS, such as 1P2D:15MB/s:8"
            ) from None
        parse_topology(topology)
        parse_rate(snic)
    return settings
