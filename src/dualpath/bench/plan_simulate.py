"""The topologies of a plan, simulated: what queues cost on top of the closed form."""

from msgspec.structs import replace

from dualpath.bench.display import Display
from dualpath.bench.plan import SimulatedRow
from dualpath.bench.plan_answer import BOTH_PATHS, ONE_PATH, Plan, Row
from dualpath.bench.plan_physics import Nodes
from dualpath.bench.simulate import simulate
from dualpath.sim.scenario import Scenario, system


def simulated(plan: Plan, nodes: Nodes, workload: str, block_tokens: int) -> Plan:
    """The plan with one path and both simulated on each topology that fits; its agents are the plan's."""
    base = Scenario(workload=workload, agents=plan.agents or 1, block_tokens=block_tokens)
    wanted = [(row, name) for row in plan.rows if row.predictions for name in (ONE_PATH, BOTH_PATHS)]
    with Display() as display:
        line = display.line("simulating", len(wanted))
        line.begin()
        runs = []
        for row, name in wanted:
            runs.append(_simulate(row, name, nodes, base))
            line.advance()
        line.end()
    return replace(plan, simulated=runs)


def _simulate(row: Row, name: str, nodes: Nodes, base: Scenario) -> SimulatedRow:
    scenario = system(replace(base, topology=row.topology), name)
    done = simulate(scenario, physics=nodes(row.topology))
    return SimulatedRow(
        topology=row.topology, system=name, requests_per_s=done.run.requests_per_s or 0.0, jct_s=done.run.jct_s,
        ttft_mean_s=done.ttft.mean_s, tpot_mean_s=done.tpot.mean_s,
        predicted_requests_per_s=row.of(name).requests_per_s,
    )  # fmt: skip
