"""What the paper compares, as scenarios (paper section 6)."""

from typing import Any, Literal

import msgspec

from dualpath.bench.reproduce.plot import Colour
from dualpath.sim.scenario import Scenario, system


class System(msgspec.Struct, frozen=True):
    """A name in plots, the name of the system in scenarios, and what else it changes."""

    name: str
    colour: Colour
    system: str
    changes: dict[str, Any] = {}


class Setting(msgspec.Struct, frozen=True):
    """A model on the topology that the paper ran it on."""

    name: str
    model: str
    topology: str


# Before the scheduler the paper spreads requests in turn (section 6, ablation)
_IN_TURN: dict[str, Any] = {"prefill_policy": "round-robin"}

BASIC = System("Basic", "basic", "basic")
LAYERWISE = System("+ layerwise prefill", "fourth", "prefill-only", _IN_TURN)
TWO_PATHS = System("+ dual path, round robin", "fifth", "round-robin", _IN_TURN)
DUALPATH = System("DualPath", "dualpath", "shorter-queue")
ORACLE = System("Oracle", "oracle", "oracle")

COMPARED = (BASIC, DUALPATH, ORACLE)

V32 = Setting("660B", "deepseek-v3.2", "2P4D")
SMALL = Setting("27B", "deepseek-27b", "1P1D")
QWEN = Setting("Qwen 32B", "qwen2.5-32b", "1P2D")
SETTINGS = (V32, SMALL, QWEN)

Reading = Literal["", "-append"]
READINGS: tuple[Reading, ...] = ("", "-append")
READING_NAMES: dict[Reading, str] = {"": "table's totals", "-append": "table's appends"}


def scenario(chosen: System, setting: Setting, agent_set: str, agents: int, **more: Any) -> Scenario:
    """A system on a setting; `more` are other fields of Scenario."""
    values: dict[str, Any] = {"model": setting.model, "topology": setting.topology, **more}
    plain = Scenario(workload=agent_set, agents=agents, **values)
    return msgspec.structs.replace(system(plain, chosen.system), **chosen.changes)
