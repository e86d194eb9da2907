"""The nodes that are planned with: from data files, a doctor's profile, a calibration, and single rates."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from dualpath.core.config import parse_topology
from dualpath.core.errors import ConfigError
from dualpath.core.hostprofile import HostProfile, load_host_profile
from dualpath.core.units import parse_rate
from dualpath.policy.bounds import RatioBounds, ratio_bounds
from dualpath.sim.physics import UNLIMITED, Physics, physics_of
from dualpath.sim.scenario import Scenario

Nodes = Callable[[str], Physics]
"""The physics of a topology's nodes; ConfigError when the model does not fit them."""


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of the nodes; later values override earlier ones."""

    hardware: str
    model: str
    profile: str | None = None  # of doctor: rates; of calibrate: all
    snic: str = ""  # line rate
    cnic: str = ""
    dram: str = ""
    storage: str = ""  # all nodes together


def nodes_of(given: Hardware) -> Nodes:
    """ConfigError when a file is missing or wrong, or a rate is none."""
    calibrated = given.profile is not None and _is_calibration(given.profile)
    measured = load_host_profile(given.profile) if given.profile and not calibrated else None
    rates = {} if given.snic else _measured_snic(measured)
    rates |= _measured_rates(measured) | _given_rates(given)

    def make(topology: str) -> Physics:
        parse_topology(topology)
        scenario = Scenario(
            topology=topology, hardware=given.hardware, model=given.model,
            profile=given.profile if calibrated else None, snic=given.snic,
        )  # fmt: skip
        return msgspec.structs.replace(physics_of(scenario), **rates)

    return make


def bounds_of(physics: Physics) -> RatioBounds | None:
    """P/D that adds no bottleneck, at line rates (paper section 3); None where a storage NIC has no limit."""
    if physics.snic_bytes_per_s == UNLIMITED or physics.cnic_bytes_per_s == UNLIMITED:
        return None
    line_rate = physics.snic_bytes_per_s / physics.snic_efficiency
    return ratio_bounds(
        gpus=physics.engines, snic_per_cnic=line_rate / physics.cnic_bytes_per_s,
        dram_bytes_per_s=physics.dram_bytes_per_s, snic_bytes_per_s=line_rate,
    )  # fmt: skip


def _measured_snic(profile: HostProfile | None) -> dict[str, float]:
    """What doctor read from storage; it knows no line rate."""
    if profile is None or profile.storage is None:
        return {}
    return {"snic_bytes_per_s": profile.storage.snic_read_bytes_per_s, "snic_efficiency": 1.0}


def _measured_rates(profile: HostProfile | None) -> dict[str, float]:
    """What doctor measured of it besides storage; a copied byte is read and written."""
    rates: dict[str, float] = {}
    if profile and any(link.how == "network" for link in profile.links):
        rates["cnic_bytes_per_s"] = max(link.cnic_bytes_per_s for link in profile.links if link.how == "network")
    if profile and profile.memory:
        rates["dram_bytes_per_s"] = 2 * profile.memory.copy_all_cores_bytes_per_s
    return rates


def _given_rates(given: Hardware) -> dict[str, float]:
    return {
        f"{name}_bytes_per_s": parse_rate(text) or UNLIMITED
        for name in ("cnic", "dram", "storage")
        if (text := getattr(given, name))
    }


def _is_calibration(file: str) -> bool:
    try:
        content = msgspec.json.decode(Path(file).expanduser().read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read --profile {file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"--profile {file} is no JSON profile; make one with dualpath doctor --json {file}")
    return "times" in content
