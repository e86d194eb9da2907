"""Agent workloads: traces read, agents generated, both made smaller, and counted."""

from dualpath.workload.arrivals import poisson_starts
from dualpath.workload.content import Drawn, Given, Piece, TokenArray, Vocabulary
from dualpath.workload.messages import render_plain
from dualpath.workload.model import History, Session, Turn, planned_prompts
from dualpath.workload.paper import PRESETS, generate
from dualpath.workload.reader import read_workload
from dualpath.workload.statistics import WorkloadStatistics, workload_statistics
from dualpath.workload.transform import cut, first_turns, shrink

__all__ = [
    "PRESETS",
    "Drawn",
    "Given",
    "History",
    "Piece",
    "Session",
    "TokenArray",
    "Turn",
    "Vocabulary",
    "WorkloadStatistics",
    "cut",
    "first_turns",
    "generate",
    "planned_prompts",
    "poisson_starts",
    "read_workload",
    "render_plain",
    "shrink",
    "workload_statistics",
]
