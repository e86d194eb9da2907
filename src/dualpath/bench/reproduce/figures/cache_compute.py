"""GB of KV to load for each PFLOP of prefill (paper section 1)."""

from collections.abc import Callable

from dualpath.bench.reproduce.figure import Figure, Number
from dualpath.bench.reproduce.outcome import Results
from dualpath.bench.reproduce.plot import Colour, Curve, Plot
from dualpath.sim.cache_compute import APPEND_TOKENS, CONTEXT_TOKENS, Ratio, paper_ratios
from dualpath.sim.scenario import Scenario

_WHY = (
    f"{APPEND_TOKENS} tokens appended; FP8 but for Qwen2.5 (FP16). Operations: two for each parameter that a token "
    "goes through, and attention."
)


def _scenarios(results: Results, quick: bool) -> list[Scenario]:
    return []


def _numbers(quick: bool) -> list[Number]:
    return [
        Number(f"{ratio.model}, context {ratio.context_tokens // 1024}K (GB/PFLOP)", ratio.paper, _ours(ratio), _WHY)
        for ratio in paper_ratios()
    ]


def _ours(ratio: Ratio) -> Callable[[Results], float]:
    return lambda results: ratio.ours


def _plots(results: Results, quick: bool) -> list[Plot]:
    ratios = paper_ratios()
    names = tuple(dict.fromkeys(ratio.model for ratio in ratios))
    curves = []
    colours: tuple[Colour, ...] = ("basic", "dualpath")
    for context, colour in zip(CONTEXT_TOKENS, colours, strict=True):
        ends = [ratio for ratio in ratios if ratio.context_tokens == context]
        name = f"context {context // 1024}K"
        curves.append(Curve(name, [(float(names.index(r.model)), r.ours) for r in ends], colour))
        curves.append(Curve(name, [(float(names.index(r.model)), r.paper) for r in ends], colour, paper=True))
    return [Plot(title="KV to load for computation", x_label="model", y_label="GB of KV / PFLOP of prefill",
                 categories=names, curves=curves)]  # fmt: skip


CACHE_COMPUTE = Figure(
    name="cache-compute", title="Cache-compute ratio",
    setting="Bytes of KV that a turn loads over floating-point operations that its new tokens take. No simulation.",
    scenarios=_scenarios, numbers=_numbers, plots=_plots,
)  # fmt: skip
