"""Attention of one layer in numbers: what a token's KV weighs and what a (query, key) pair costs.

Four kinds: grouped heads (GQA), with a sliding window in some layers, latent (MLA), and latent with a sparse choice of
keys (DSA, DeepSeek-V3.2). Latent attention is counted in its absorbed form, over the latent as it is stored: cached
keys are not expanded again.
"""

import msgspec

from dualpath.sim.config_fields import DTYPE_BYTES, Fields

# Kernels of a layer's attention, counted in open serving engines: projections, norms, rotation, write to the cache,
# attention and the combination of its parts; MLA adds low-rank steps and their quantization, DSA its index and top-k.
GROUPED_KERNELS = 6
LATENT_KERNELS = 14
INDEX_KERNELS = 10

SCALE_BYTES = 4  # of 128 values in fp8
SCALED_VALUES = 128


class Attention(msgspec.Struct, frozen=True, kw_only=True):
    """One layer's. A pair is a new token and a key that it attends to."""

    parameters: int
    token_bytes: int  # KV of one token, index key included
    pair_flops: int  # all heads: scores and weighted sum
    key_bytes: int  # read of one attended key
    window_layers: int = 0  # layers that attend to the last window_tokens only
    window_tokens: int = 0
    top_tokens: int = 0  # sparse: keys that a query attends to, chosen by an index over all; 0: all
    index_pair_flops: int = 0
    index_key_bytes: int = 0
    kernels: int  # that a forward pass starts, projections included: an assumption

    def flops(self, layers: int, cached: int, new: int) -> float:
        """Of `new` tokens behind `cached` ones, in all layers."""
        full_layers = layers - self.window_layers
        attended = pairs(cached, new, self.top_tokens) * full_layers
        attended += pairs(cached, new, self.window_tokens) * self.window_layers
        return attended * self.pair_flops + pairs(cached, new) * layers * self.index_pair_flops


def pairs(cached: int, new: int, limit: int = 0) -> float:
    """(query, key) pairs of `new` tokens behind `cached`; a query sees at most `limit` keys (0: all)."""
    if not limit or cached + new <= limit:
        return cached * new + new * new / 2
    below = max(0, limit - cached)  # the first of the new tokens, which see less than the limit
    return cached * below + below * below / 2 + (new - below) * limit


def read_attention(fields: Fields, layers: int, hidden: int, kv_dtype: str) -> Attention:
    """The attention that a config.json describes."""
    if fields.first("kv_lora_rank"):
        return _latent(fields, hidden, kv_dtype)
    return _grouped(fields, layers, hidden, kv_dtype)


def _grouped(fields: Fields, layers: int, hidden: int, kv_dtype: str) -> Attention:
    heads = fields.count("num_attention_heads")
    kv_heads = fields.first("num_key_value_heads") or heads
    head_dim = fields.first("head_dim") or hidden // heads
    token_bytes = int(2 * kv_heads * head_dim * DTYPE_BYTES[kv_dtype])
    window = fields.first("sliding_window") or 0
    return Attention(
        parameters=hidden * head_dim * (2 * heads + 2 * kv_heads),
        token_bytes=token_bytes,
        pair_flops=4 * heads * head_dim,
        key_bytes=token_bytes,
        kernels=GROUPED_KERNELS,
        window_layers=_window_layers(fields, layers) if window else 0,
        window_tokens=window,
    )


def _window_layers(fields: Fields, layers: int) -> int:
    """Layers that slide: as listed; else all, unless the config switches it off or on from some layer."""
    kinds = fields.names("layer_types")
    if kinds:
        return kinds.count("sliding_attention")
    if fields.text("model_type") == "gpt_oss":
        return (layers + 1) // 2
    if fields.text("model_type") in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"):
        switched_on = fields.flag("use_sliding_window")
        return max(0, layers - (fields.first("max_window_layers") or 0)) if switched_on else 0
    return layers


def _latent(fields: Fields, hidden: int, kv_dtype: str) -> Attention:
    heads, rank = fields.count("num_attention_heads"), fields.count("kv_lora_rank")
    nope, rope = fields.count("qk_nope_head_dim"), fields.count("qk_rope_head_dim")
    value, query_rank = fields.count("v_head_dim"), fields.first("q_lora_rank")
    query_parameters = heads * (nope + rope) * (query_rank or hidden) + hidden * (query_rank or 0)
    latent_parameters = hidden * (rank + rope) + rank * heads * (nope + value) + heads * value * hidden
    latent_bytes = _latent_bytes(rank, rope, kv_dtype)
    attention = Attention(
        parameters=query_parameters + latent_parameters,
        token_bytes=latent_bytes,
        pair_flops=2 * heads * (rank + rope + rank),
        key_bytes=latent_bytes,
        kernels=LATENT_KERNELS,
    )
    if not fields.first("index_topk"):
        return attention
    return _with_index(attention, fields, hidden, query_rank or hidden)


def _latent_bytes(rank: int, rope: int, kv_dtype: str) -> int:
    """In fp8 the latent has scales and the rotated part stays in 16 bits (FlashMLA's format: 656 bytes)."""
    if kv_dtype == "fp8":
        return rank + rank // SCALED_VALUES * SCALE_BYTES + 2 * rope
    return int((rank + rope) * DTYPE_BYTES[kv_dtype])


def _with_index(attention: Attention, fields: Fields, hidden: int, query_size: int) -> Attention:
    """DSA's indexer: one fp8 key a token for all its heads; scores are rectified, weighted and summed over heads."""
    heads, dim = fields.count("index_n_heads"), fields.count("index_head_dim")
    key_bytes = dim + dim // SCALED_VALUES * SCALE_BYTES
    return msgspec.structs.replace(
        attention,
        parameters=attention.parameters + query_size * heads * dim + hidden * (dim + heads),
        token_bytes=attention.token_bytes + key_bytes,
        top_tokens=fields.count("index_topk"),
        index_pair_flops=heads * (2 * dim + 2),
        index_key_bytes=key_bytes,
        kernels=attention.kernels + INDEX_KERNELS,
    )
