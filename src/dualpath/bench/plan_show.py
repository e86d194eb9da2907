"""A plan as tables and sentences for a terminal."""

from rich.console import Console
from rich.table import Table

from dualpath.bench.plan import SYSTEMS
from dualpath.bench.plan_answer import BOTH_PATHS, ONE_PATH, Plan, Row
from dualpath.policy.bounds import RatioBounds


def show(console: Console, plan: Plan) -> None:
    """Everything, the answer last."""
    work = plan.work
    console.print(
        f"A request: {work.context_tokens:,.0f} tokens of prompt, {work.hit_rate:.1%} of them cached, "
        f"{work.gen_tokens:,.0f} generated; {work.turns:,.0f} turns an agent."
    )
    if plan.bounds:
        console.print(_bounds_text(plan.bounds))
    for table in _tables(plan):
        console.print(table)
    if plan.simulated:
        console.print(_of_simulations(plan))
    for line in plan.answer:
        console.print(line, markup=False)


def _bounds_text(bounds: RatioBounds) -> str:
    if bounds.low > bounds.high:
        low, high = ", ".join(bounds.low_set_by), ", ".join(bounds.high_set_by)
        return f"No ratio P/D leaves storage NICs as the only bottleneck: {low} and {high} exclude each other."
    return (
        f"Only storage NICs can bind the moves of KV for P/D from {bounds.low:.3g} ({', '.join(bounds.low_set_by)}) to "
        f"{bounds.high:.3g} ({', '.join(bounds.high_set_by)})."
    )


def _tables(plan: Plan) -> list[Table]:
    fitting = [row for row in plan.rows if row.predictions]
    tables = [_of_topologies(plan)] if len(plan.rows) > 1 else []
    tables += [_of_systems(plan, row) for row in fitting if row.topology == plan.best]
    return tables


def _of_topologies(plan: Plan) -> Table:
    """A row a topology: with one path, with both."""
    table = Table("nodes", "P/D", ONE_PATH, "binds", BOTH_PATHS, "binds", "gain", title="Requests/s by topology")
    for row in plan.rows:
        if not row.predictions:
            table.add_row(row.topology, "", "does not fit", "", "", "", "")
            continue
        one, both = row.of(ONE_PATH), row.of(BOTH_PATHS)
        gain = f"{both.requests_per_s / one.requests_per_s:.2f} x" if one.requests_per_s else "-"
        rates = (f"{one.requests_per_s:.4g}", one.binding, f"{both.requests_per_s:.4g}", both.binding, gain)
        table.add_row(_name(row, plan.best), {True: "ok", False: "outside", None: "-"}[row.within_bounds], *rates)
    return table


def _of_systems(plan: Plan, row: Row) -> Table:
    """A row a system on one topology; alone: of a request that waits for nobody."""
    loaded = plan.agents is not None
    columns = ["TTFT", "JCT"] if loaded else ["TTFT alone"]
    table = Table("", "req/s", "TPOT", *columns, "binds", title=row.topology)
    for name in SYSTEMS:
        p = row.of(name)
        times = [f"{p.ttft_s:.3g} s", f"{p.jct_s or 0:.4g} s"] if loaded else [f"{p.ttft_alone_s * 1e3:.4g} ms"]
        table.add_row(name, f"{p.requests_per_s:.4g}", f"{p.tpot_s * 1e3:.3g} ms", *times, p.binding)
    return table


def _of_simulations(plan: Plan) -> Table:
    """A row a run, beside the closed form."""
    table = Table("nodes", "", "req/s", "closed form", "JCT", "TTFT", "TPOT", title=f"Simulated, {plan.agents} agents")
    for run in plan.simulated:
        times = [f"{s * 1e3:.4g} ms" if s is not None else "-" for s in (run.ttft_mean_s, run.tpot_mean_s)]
        rates = (f"{run.requests_per_s:.4g}", f"{run.predicted_requests_per_s:.4g}", f"{run.jct_s:.4g} s")
        table.add_row(run.topology, run.system, *rates, *times)
    return table


def _name(row: Row, best: str | None) -> str:
    return f"{row.topology} *" if row.topology == best else row.topology
