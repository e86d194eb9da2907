"""What the parts of a forward pass cost a group of engines: the roofline of each, in nanoseconds, as coefficients.

A part takes the longer of its arithmetic and its reads of memory, at the shares of the peaks that the hardware file
gives. All layers of a kind are alike, so the sums over layers are formed once, here.
"""

import math

import msgspec

from dualpath.policy.batch import AttentionTime
from dualpath.sim.config_fields import DTYPE_BYTES
from dualpath.sim.engine_memory import pooled_bytes
from dualpath.sim.hardware import Hardware
from dualpath.sim.models import ModelShape

ALWAYS_TOUCHED = -50.0  # a finite stand-in for the logarithm of no chance at all
COMBINED_BYTES = 2  # a value on its way back from the experts, in 16 bits


class GroupCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one forward pass of a group, all layers; tokens are the new ones."""

    fixed_ns: float  # kernels of every layer, latency of exchanges, output head, between passes
    local_token_ns: float  # an engine's own part: attention's projections, shared experts, dense layers
    local_weights_ns: float
    pooled_token_ns: float  # experts (or a dense model's feed-forward), a token of the whole group
    pooled_weights_ns: float  # if all of them are touched
    untouched: float  # log of the chance that a token does not go through a given expert
    exchange_token_ns: float  # a token of the busiest engine, what computation does not hide

    def step_ns(self, slowest_ns: float, group_tokens: int, most_tokens: int) -> int:
        """Of a pass whose slowest engine needs `slowest_ns` for its own part and its attention."""
        touched = -math.expm1(self.untouched * group_tokens)
        pooled_ns = max(self.pooled_token_ns * group_tokens, self.pooled_weights_ns * touched)
        return round(slowest_ns + pooled_ns + self.exchange_token_ns * most_tokens + self.fixed_ns)


class DecodeAttention(msgspec.Struct, frozen=True):
    """Costs of a key of the context, in layers that look at all, and in those that attend to at most `limit_tokens`."""

    every_key_ns: float
    limited_key_ns: float
    limit_tokens: int  # of one request: the window, or the keys that the index chooses


def group_costs(hardware: Hardware, model: ModelShape, group: int) -> GroupCosts:
    """Costs of a group of `group` engines; whole nodes when more than one node."""
    ff = model.feed_forward
    pooled = pooled_bytes(model)
    head_bytes = model.embedding_bytes / 2  # the input's embedding is only looked up
    local_bytes = model.weight_bytes - pooled - model.embedding_bytes
    pooled_flops, pooled_dtype, pooled_layers = _pooled_part(model)
    exchange_ns = hardware.near_exchange_ns if group <= hardware.gpus else hardware.far_exchange_ns
    exchanges = 2 * pooled_layers if group > 1 else 0
    return GroupCosts(
        fixed_ns=model.kernels * hardware.kernel_ns + exchanges * exchange_ns + hardware.step_ns
        + _read_ns(hardware, head_bytes),
        local_token_ns=_matrix_ns(hardware, 2 * local_bytes / DTYPE_BYTES[model.weight_dtype], model.weight_dtype),
        local_weights_ns=_read_ns(hardware, local_bytes),
        pooled_token_ns=_matrix_ns(hardware, pooled_flops, pooled_dtype) / group * _imbalance(hardware, model, group),
        pooled_weights_ns=_read_ns(hardware, pooled / group),
        untouched=math.log1p(-ff.chosen / ff.experts) if ff.chosen < ff.experts else ALWAYS_TOUCHED,
        exchange_token_ns=_exchange_token_ns(hardware, model, group) * pooled_layers,
    )  # fmt: skip


def prefill_attention(hardware: Hardware, model: ModelShape) -> AttentionTime:
    """Predicted time of a chunk, all layers.

    Chunks of a block or more are bound by arithmetic, as their queries share the keys; a sparse choice is not shared. A
    window or a choice of keys counts as full even where the context is shorter (by at most some 2K tokens).
    """
    attention = model.attention
    attend_ns = _attend_ns(hardware, attention.pair_flops)
    if attention.top_tokens:
        gather_ns = max(attend_ns, _read_ns(hardware, attention.key_bytes))
        index_ns = _matrix_ns(hardware, attention.index_pair_flops, "fp8")
        return AttentionTime(0.0, attention.top_tokens * gather_ns * model.layers, index_ns * model.layers)
    full_layers = model.layers - attention.window_layers
    return AttentionTime(
        0.0, attention.window_tokens * attend_ns * attention.window_layers, attend_ns * full_layers
    )  # fmt: skip


def decode_attention(hardware: Hardware, model: ModelShape) -> DecodeAttention:
    """All layers; one query a request, so every key is read for it alone."""
    attention = model.attention
    key_ns = max(_attend_ns(hardware, attention.pair_flops), _read_ns(hardware, attention.key_bytes))
    score_ns = _matrix_ns(hardware, attention.index_pair_flops, "fp8")
    index_ns = max(score_ns, _read_ns(hardware, attention.index_key_bytes))
    if attention.top_tokens:
        return DecodeAttention(index_ns * model.layers, key_ns * model.layers, attention.top_tokens)
    full_layers = model.layers - attention.window_layers
    return DecodeAttention(key_ns * full_layers, key_ns * attention.window_layers, attention.window_tokens)


def _pooled_part(model: ModelShape) -> tuple[float, str, int]:
    """FLOPs a token, dtype, and number of layers of what a group has once."""
    ff = model.feed_forward
    if model.is_moe:
        return 2.0 * ff.moe_layers * ff.chosen * ff.expert_parameters, model.expert_dtype, ff.moe_layers
    return 2.0 * ff.dense_layers * ff.dense_parameters, model.weight_dtype, ff.dense_layers


def _imbalance(hardware: Hardware, model: ModelShape, group: int) -> float:
    return hardware.expert_imbalance if model.is_moe and group > 1 else 1.0


def _exchange_token_ns(hardware: Hardware, model: ModelShape, group: int) -> float:
    """A token's way to the engines that have its part of a layer, and back, as far as computation does not hide it.

    The slower of NVLink and CNIC: a token crosses to a node once, then spreads (as DeepEP's normal kernels do).
    Experts are chosen evenly.
    """
    nodes = max(1, group // hardware.gpus)
    if model.is_moe:
        chosen = model.feed_forward.chosen
        near = (group - 1) * (1 - (1 - 1 / group) ** chosen)
        far = (nodes - 1) * (1 - (1 - 1 / nodes) ** chosen)
    else:
        near, far = group - 1, 0  # every other engine has a slice of the part
    sent = 1 if model.is_moe and model.expert_dtype == "fp8" else 2
    token_bytes = model.hidden * (sent + COMBINED_BYTES)
    slower_s = max(near / hardware.nvlink_bytes_per_s, far / hardware.cnic_bytes_per_s)
    return token_bytes * slower_s * 1e9 / hardware.link_efficiency * (1 - hardware.collective_overlap)


def _matrix_ns(hardware: Hardware, flops: float, dtype: str) -> float:
    return flops * 1e9 / (hardware.flops_per_s(dtype) * hardware.gemm_efficiency)


def _attend_ns(hardware: Hardware, flops: float) -> float:
    """Scores and sums are computed in 16 bits, whatever the KV is stored in."""
    return flops * 1e9 / (hardware.flops_per_s("bfloat16") * hardware.attention_efficiency)


def _read_ns(hardware: Hardware, size: float) -> float:
    return size * 1e9 / (hardware.hbm_bytes_per_s * hardware.hbm_efficiency)
