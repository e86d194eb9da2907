"""From predictions to a plain answer: do both paths help here, how much, and what binds."""

from collections.abc import Sequence

import msgspec

from dualpath.bench.plan import SNICS, SYSTEMS, Prediction, SimulatedRow, predict
from dualpath.bench.plan_physics import Nodes, bounds_of
from dualpath.bench.plan_work import Work
from dualpath.core.config import parse_topology
from dualpath.core.errors import ConfigError
from dualpath.policy.bounds import RatioBounds

ONE_PATH, BOTH_PATHS, NO_STORAGE = "prefill-only", "split", "oracle"
LEAST_GAIN = 1.02  # less is within what such a plan can tell


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One topology. Without predictions `error` says why."""

    topology: str
    within_bounds: bool | None = None  # of P/D, paper section 3
    predictions: list[Prediction] = []
    error: str = ""

    def of(self, system: str) -> Prediction:
        """One system's."""
        return next(p for p in self.predictions if p.system == system)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found; `answer` in plain sentences."""

    work: Work
    agents: int | None
    bounds: RatioBounds | None
    rows: list[Row]
    best: str | None  # topology with both paths
    helps: bool
    answer: list[str]
    simulated: list[SimulatedRow] = []


def make_plan(nodes: Nodes, topologies: Sequence[str], work: Work, agents: int | None) -> Plan:
    """All systems on all topologies; ConfigError when the model fits none of them."""
    rows = [_row(nodes, topology, work, agents) for topology in topologies]
    fitting = [row for row in rows if row.predictions]
    if rows and not fitting:
        raise ConfigError(rows[0].error)
    if not fitting:
        return Plan(work=work, agents=agents, bounds=None, rows=[], best=None, helps=False, answer=[ONE_NODE])
    bounds = bounds_of(nodes(fitting[0].topology))
    best = best_row(fitting, BOTH_PATHS)
    helps, first = _verdict(best, work)
    answer = [first, *_remarks(best, fitting, bounds)]
    return Plan(
        work=work, agents=agents, bounds=bounds, rows=rows, best=best.topology, helps=helps, answer=answer
    )  # fmt: skip


ONE_NODE = (
    "No: one node has one storage NIC, and a request's two nodes are the same one. Both paths need a prefill node and "
    "a decode node with storage NICs of their own."
)


def best_row(rows: Sequence[Row], system: str) -> Row:
    """The topology with most requests a second; of equal ones the first."""
    return max(rows, key=lambda row: row.of(system).requests_per_s)


def _row(nodes: Nodes, topology: str, work: Work, agents: int | None) -> Row:
    try:
        physics = nodes(topology)
    except ConfigError as error:
        return Row(topology=topology, error=str(error))
    bounds = bounds_of(physics)
    predictions = [predict(physics, topology, system, work, agents) for system in SYSTEMS.values()]
    if not any(p.requests_per_s for p in predictions):
        return Row(
            topology=topology, error=f"a request of {work.context_tokens:,.0f} tokens fits no engine of {topology}"
        )
    within = bounds.allow(*parse_topology(topology)) if bounds else None
    return Row(topology=topology, within_bounds=within, predictions=predictions)


def _verdict(row: Row, work: Work) -> tuple[bool, str]:
    """Whether both paths help there, and the sentence that says it."""
    one, both = row.of(ONE_PATH), row.of(BOTH_PATHS)
    if not work.hit_tokens:
        return False, "No: no prompt begins as an earlier one did, so nothing is read from storage on any path."
    what, mend = _binds(both)
    gain = both.requests_per_s / one.requests_per_s if one.requests_per_s else 1.0
    if gain >= LEAST_GAIN:
        return True, (
            f"Yes: on {row.topology} both paths serve {gain:.2f} times the requests of prefill nodes that read alone "
            f"({both.requests_per_s:.3g}/s for {one.requests_per_s:.3g}/s). Then {what}. {mend}".rstrip()
        )
    if one.binding in SNICS:
        return False, (
            f"No: on {row.topology} the prefill nodes' storage NICs bind, but with both paths {what} at the same rate "
            f"({both.requests_per_s:.3g} requests/s). {mend}".rstrip()
        )
    what, mend = _binds(one)
    if one.binding == "agents":
        return False, f"No: on {row.topology} {what}. {mend}"
    return False, (
        f"No: on {row.topology} {what} already while prefill nodes read alone ({one.requests_per_s:.3g} requests/s); "
        f"their storage NICs are {one.use.get(SNICS[0], 0):.0%} busy. {mend}"
    )


_BINDS = {  # what is used up, and what would mend it
    "prefill engines": ("the prefill engines' computation binds", "More prefill nodes help."),
    "decode engines": ("the decode engines' computation and KV memory bind", "More decode nodes help."),
    "storage": ("storage as a whole binds", "No path reads faster than it."),
    "agents": (
        "nothing binds: so few agents wait mostly for their own answers",
        "Both paths then only shorten the reads.",
    ),
    "prefill DRAM": ("the prefill nodes' DRAM binds", "Faster memory helps."),
    "decode DRAM": ("the decode nodes' DRAM binds", "More decode nodes or faster memory help."),
    "all SNICs": ("all storage NICs bind", "More nodes of either role help."),
    "prefill SNICs": ("the prefill nodes' storage NICs bind", ""),
    "decode SNICs": ("the decode nodes' storage NICs bind", ""),
    "decode SNICs, writing": ("writing new KV to storage binds", "More decode nodes help."),
}


def _binds(prediction: Prediction) -> tuple[str, str]:
    side = prediction.binding.split()[0]
    compute_nics = (f"the {side} nodes' compute NICs bind", f"More {side} nodes help.")
    return _BINDS.get(prediction.binding, compute_nics)


def _remarks(best: Row, rows: Sequence[Row], bounds: RatioBounds | None) -> list[str]:
    """What one should know besides."""
    remarks = []
    one = best_row(rows, ONE_PATH)
    if len(rows) > 1:
        ratio = best.of(BOTH_PATHS).requests_per_s / one.of(ONE_PATH).requests_per_s
        remarks.append(
            f"Best of these: {best.topology} with both paths; prefill nodes alone do best as {one.topology}. "
            f"Best against best: {ratio:.2f} times."
        )
    alone = [best.of(system).ttft_alone_s for system in (ONE_PATH, BOTH_PATHS)]
    if alone[1] < alone[0] / LEAST_GAIN:
        remarks.append(
            f"A request that waits for nobody gets its first token after {alone[1] * 1e3:.3g} ms, if both nodes read "
            f"it, instead of {alone[0] * 1e3:.3g} ms."
        )
    partly = best.of("load-or-recompute")
    if partly.read_share < 1:
        remarks.append(
            f"load-or-recompute would leave out {1 - partly.read_share:.0%} of each hit: computing that is sooner than "
            f"reading it ({partly.requests_per_s:.3g} requests/s)."
        )
    if bounds and best.within_bounds is False:
        remarks.append(f"{best.topology} is outside the ratios of nodes at which only storage NICs can bind.")
    return remarks
