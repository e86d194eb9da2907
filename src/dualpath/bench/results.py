"""From what agents saw and the cluster counted to the figures of a run; definitions in docs/design/replay.md."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median

import msgspec
import numpy as np

from dualpath.bench.agents import Replayed, TurnRecord
from dualpath.bench.counters import Cost, Spent
from dualpath.bench.wire import of_direction
from dualpath.core.keys import pack_tokens
from dualpath.core.report import Role
from dualpath.core.units import NS_PER_S


class BytesRead(msgspec.Struct, frozen=True):
    """From storage, by the role of the node that read them."""

    prefill: int
    decode: int


class Divergence(msgspec.Struct, frozen=True):
    """A session's first token that is not the first run's, and how close the two best logits were there."""

    agent: int
    turn: int
    token: int
    logit_gap: float


class Run(msgspec.Struct, kw_only=True):
    """The figures of one policy's run; None = not defined (nothing was read, or there is no rate)."""

    policy: str
    pair: int
    topology: str
    jct_s: float
    agent_jct_mean_s: float | None
    turns: int
    requests_per_s: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    ttst_p50_s: float | None
    ttst_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    hit_rate: float | None
    hit_rate_blocks: float | None
    snic_utilisation: float | None
    snic_max_over_avg: float | None
    cnic_peak: float | None
    snic_busy: dict[str, float]  # share of the JCT in which the node had a read that waited or ran
    bytes_read: BytesRead
    bytes_retained: int
    wire_bytes: dict[str, int] | None  # by node and direction, as the kernel counts; None without counters
    writes_skipped: int
    restarted: list[str]  # roles that died during the run, which therefore does not count
    decisions: dict[str, int]
    recomputes: dict[str, int]
    cpu_s: dict[str, float]  # by kind of process
    tokens_sha256: str
    divergences: list[Divergence]
    errors: int
    error_messages: list[str]


def summarise(
    policy: str, pair: int, topology: str, replayed: Replayed, first: Replayed, cost: Cost,
    *, rate_bytes_per_s: int | None, block_tokens: int, cnic_bytes_per_s: int | None = None,
) -> Run:  # fmt: skip
    """The figures of a run; `first` is the run that its tokens are compared with."""
    spent = cost.spent
    turns, jct_s = replayed.turns, replayed.jct_s
    ttft, ttst, tpot = (percentiles([getattr(turn, name) for turn in turns]) for name in ("ttft_s", "ttst_s", "tpot_s"))
    return Run(
        policy=policy, pair=pair, topology=topology, jct_s=jct_s,
        agent_jct_mean_s=mean(replayed.agent_s) if replayed.agent_s else None,
        turns=len(turns), requests_per_s=ratio(len(turns), jct_s),
        ttft_p50_s=ttft[0], ttft_p99_s=ttft[1], ttst_p50_s=ttst[0], ttst_p99_s=ttst[1],
        tpot_p50_s=tpot[0], tpot_p99_s=tpot[1],
        hit_rate=ratio(sum(t.cached_tokens for t in turns), sum(t.prompt_tokens for t in turns)),
        hit_rate_blocks=ratio(
            sum(t.cached_tokens // block_tokens for t in turns), sum(t.prompt_tokens // block_tokens for t in turns)
        ),
        snic_utilisation=snic_utilisation(spent, rate_bytes_per_s, of_direction(cost.wire_bytes, "snic_in")),
        snic_max_over_avg=snic_max_over_avg(spent, prefill_only=policy == "prefill-only"),
        cnic_peak=cnic_peak(cost.wire_bytes, cnic_bytes_per_s, jct_s),
        snic_busy={n.node: ratio(n.read_busy_ns, jct_s * NS_PER_S) or 0.0 for n in spent.nodes},
        bytes_read=BytesRead(spent.read_bytes(Role.PREFILL), spent.read_bytes(Role.DECODE)),
        bytes_retained=sum(node.retained_bytes for node in spent.nodes),
        wire_bytes=cost.wire_bytes or None,
        writes_skipped=sum(node.writes_skipped for node in spent.nodes),
        restarted=cost.restarted, decisions=spent.decisions, recomputes=spent.recomputes, cpu_s=cost.cpu_s,
        tokens_sha256=tokens_sha256(turns), divergences=divergences(first.turns, turns),
        errors=len(replayed.errors), error_messages=replayed.errors[:5],
    )  # fmt: skip


def snic_utilisation(spent: Spent, rate_bytes_per_s: int | None, wire_in: Sequence[int] = ()) -> float | None:
    """Bytes in through all SNICs / (nodes * rate * time in which any read waited or ran).

    As the kernel counted them on the wire, or else the payload that nodes read.
    """
    if rate_bytes_per_s is None:
        return None
    possible = len(spent.nodes) * rate_bytes_per_s * spent.any_read_ns / NS_PER_S
    return ratio(sum(wire_in or (node.read_bytes for node in spent.nodes)), possible)


def cnic_peak(wire: Mapping[str, int], rate_bytes_per_s: int | None, jct_s: float) -> float | None:
    """Share of its rate that the busiest direction of a compute NIC used over the run."""
    moved = [*of_direction(wire, "cnic_in"), *of_direction(wire, "cnic_out")]
    if rate_bytes_per_s is None or not moved:
        return None
    return ratio(max(moved), rate_bytes_per_s * jct_s)


def wire_over_read(run: Run) -> float | None:
    """Bytes in through all SNICs / payload that the plans named: what protocols add, and reads that were in vain."""
    if run.wire_bytes is None:
        return None
    return ratio(sum(of_direction(run.wire_bytes, "snic_in")), run.bytes_read.prefill + run.bytes_read.decode)


def snic_max_over_avg(spent: Spent, *, prefill_only: bool) -> float | None:
    """Most bytes that one node read / their mean, over the nodes that the policy may read with."""
    read = [node.read_bytes for node in spent.nodes if node.role is Role.PREFILL or not prefill_only]
    return ratio(max(read), mean(read))


def tokens_sha256(turns: Sequence[TurnRecord]) -> str:
    """Hash over all output token ids, little-endian uint32, in order of (agent, turn)."""
    return hashlib.sha256(b"".join(pack_tokens(turn.tokens) for turn in turns)).hexdigest()


def divergences(first: Sequence[TurnRecord], turns: Sequence[TurnRecord]) -> list[Divergence]:
    """Each session's first difference; the smaller gap of both runs. After it the prompts differ too."""
    expected = {(turn.agent, turn.turn): turn for turn in first}
    found: dict[int, Divergence] = {}
    for turn in turns:
        other = expected.get((turn.agent, turn.turn))
        if other is None or turn.agent in found or turn.tokens == other.tokens:
            continue
        token = next(i for i, (a, b) in enumerate(zip(turn.tokens, other.tokens, strict=True)) if a != b)
        gap = min(turn.gaps[token], other.gaps[token])
        found[turn.agent] = Divergence(turn.agent, turn.turn, token, gap)
    return list(found.values())


def speedups(runs: Sequence[Run]) -> dict[str, float]:
    """How many times as fast as the first policy each one is: median over the pairs."""
    ratios: dict[str, list[float]] = {}
    for run in runs:
        base = next(r for r in runs if r.pair == run.pair)
        ratios.setdefault(run.policy, []).append(ratio(base.jct_s, run.jct_s) or 0.0)
    return {policy: median(values) for policy, values in ratios.items()}


def median_of(runs: Sequence[Run], figure: Callable[[Run], float | None]) -> float | None:
    """Median over the runs in which a figure is defined."""
    values = [value for run in runs if (value := figure(run)) is not None]
    return median(values) if values else None


def write_json(file: Path, content: object) -> None:
    """Write whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def percentiles(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """p50 and p99."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    p50, p99 = np.percentile(known, [50, 99])
    return float(p50), float(p99)


def ratio(part: float, whole: float) -> float | None:
    """None where it is not defined."""
    return part / whole if whole else None
