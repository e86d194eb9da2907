"""Scenarios one after the other with a progress line each, and what the table does not show."""

from collections.abc import Sequence
from pathlib import Path

from dualpath.bench.display import Display
from dualpath.bench.simulate import Simulated, Simulation, simulate
from dualpath.sim.perfetto import Recorder
from dualpath.sim.run import load_lengths
from dualpath.sim.scenario import Scenario, check, system_of


def run_all(scenarios: Sequence[Scenario], *, until_s: float | None, trace: Path | None) -> list[Simulated]:
    """Simulate all; `trace`: a file for what the first one did."""
    for scenario in scenarios:
        check(scenario)
    sessions = load_lengths(scenarios[0])
    turns = sum(len(session.prompt) for session in sessions)
    recorder = Recorder() if trace else None
    done: list[Simulated] = []
    with Display() as display:
        for scenario in scenarios:
            line = display.line(system_of(scenario), turns)
            line.begin()
            done.append(
                simulate(scenario, line.advance, until_s, sessions=sessions, recorder=None if done else recorder)
            )
            line.end()
    if recorder and trace:
        recorder.write(trace)
    return done


def facts(result: Simulation) -> list[str]:
    """A line a system: how it was simulated, and whether all of it."""
    lines = []
    for one in result.simulated:
        cut = f"; cut off with {one.unfinished} requests under way" if one.unfinished else ""
        speed = f"{one.simulated_requests_per_s:,.0f} requests/s"
        lines.append(f"{one.run.policy}: simulated at {speed}{cut}; trace {one.trace_hash[:16]}")
        lines += [f"{one.run.policy}: {message}" for message in one.run.error_messages]
    return lines
