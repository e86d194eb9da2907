"""The cache-compute ratio: how much KV must be loaded for a given amount of prefill (paper section 1)."""

import msgspec

from dualpath.sim.models import ModelShape, load_model

APPEND_TOKENS = 429
CONTEXT_TOKENS = (16 * 1024, 64 * 1024)

PAPER_RATIOS = {  # model's data file -> GB a PFLOP at the two contexts, lower end first
    "qwen2.5-32b": (117.0, 267.0),
    "gpt-oss-120b": (47.0, 95.0),
    "qwen3-235b-a22b": (39.0, 60.0),
    "deepseek-v3.2": (13.0, 36.0),
    "deepseek-v3": (4.8, 5.8),
}


class Ratio(msgspec.Struct, frozen=True):
    """One end of one model's range, in GB a PFLOP."""

    model: str
    context_tokens: int
    paper: float
    ours: float

    @property
    def difference(self) -> float:
        """As a share of the paper's."""
        return self.ours / self.paper - 1


def cache_compute_ratio(model: ModelShape, cached: int, append: int = APPEND_TOKENS) -> float:
    """GB of KV to load for each PFLOP of prefill, when `append` tokens follow `cached` ones."""
    return model.loaded_bytes(cached) / 1e9 / (model.prefill_flops(cached, append) / 1e15)


def paper_ratios() -> list[Ratio]:
    """Both ends of the ranges of all five models, beside the paper's."""
    return [
        Ratio(name, context, paper, cache_compute_ratio(load_model(name), context))
        for name, ends in PAPER_RATIOS.items()
        for context, paper in zip(CONTEXT_TOKENS, ends, strict=True)
    ]
