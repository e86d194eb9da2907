"""From vLLM's configuration and its workers' KV caches to the layout of stored blocks."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualpath.core.errors import ConfigError
from dualpath.core.layout import BlockLayout
from dualpath.core.model import ModelSpec, weights_fingerprint
from dualpath.vllm.step import ShardShape
from dualpath.vllm.version import installed_version

BLOCK_TOKENS = 64  # of a stored block, where vLLM's blocks divide it


def stored_block_tokens(vllm_block_tokens: int, wanted: int | None) -> int:
    """Tokens of a stored block: a whole number of vLLM's. ConfigError when `wanted` is none."""
    if wanted is None:
        return BLOCK_TOKENS if BLOCK_TOKENS % vllm_block_tokens == 0 else vllm_block_tokens
    if wanted < 1 or wanted % vllm_block_tokens:
        raise ConfigError(
            f"block_tokens is {wanted}, vLLM's blocks have {vllm_block_tokens} tokens; give a multiple of that, or "
            f"start vLLM with --block-size {wanted}"
        )
    return wanted


def check_supported(config: Any, kv_cache_config: Any) -> None:
    """ConfigError for what this connector cannot keep right, with the mend."""
    parallel = config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ConfigError("pipeline parallelism is not supported; use --pipeline-parallel-size 1")
    if parallel.data_parallel_size > 1:
        raise ConfigError("one server a data-parallel rank, please: --data-parallel-size 1, each with its own agent")
    if getattr(parallel, "enable_dbo", False):
        raise ConfigError("dual batch overlap runs layers twice a step; leave out --enable-dbo")
    speculative = config.speculative_config
    if speculative is not None and speculative.method not in ("ngram", "suffix"):
        raise ConfigError(f"speculative decoding by {speculative.method} keeps KV of its own; use ngram or none")
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise ConfigError(
            f"the model has {len(groups)} kinds of KV cache; give vLLM --disable-hybrid-kv-cache-manager, and if it "
            "still has several, this model cannot be served with a store"
        )
    policy = config.kv_transfer_config.kv_load_failure_policy
    if policy != "recompute":
        raise ConfigError(
            f"kv_load_failure_policy is {policy!r}: one failed read would fail a request; put "
            '"kv_load_failure_policy": "recompute" into --kv-transfer-config'
        )


def model_spec(
    config: Any, kv_cache_config: Any, shards: Mapping[int, ShardShape], extra: Mapping[str, Any]
) -> ModelSpec:
    """What this server keeps in the store. ConfigError when its ranks differ, or the weights have no name."""
    shapes = {(s.layers, s.page_bytes, s.memory) for s in shards.values()}
    if len(shapes) != 1:
        raise ConfigError(f"the ranks' KV caches differ: {shapes}")
    layers, page_bytes, memory = shapes.pop()
    model, ranks = config.model_config, len(shards)
    vllm_block = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
    block_tokens = stored_block_tokens(vllm_block, extra.get("block_tokens"))
    layer_block_bytes = page_bytes * ranks * (block_tokens // vllm_block)
    token_bytes, rest = divmod(layer_block_bytes, block_tokens)
    if rest:
        raise ConfigError(f"a page of {page_bytes} bytes is no whole number of bytes a token; change --block-size")
    dtype = str(config.cache_config.cache_dtype)
    layout = BlockLayout(
        model=_fingerprint(model, extra), n_layers=layers, block_tokens=block_tokens, token_bytes=token_bytes,
        dtype=str(model.dtype).removeprefix("torch.") if dtype == "auto" else dtype,
        memory=f"vllm block={vllm_block} ranks={ranks} {memory}",
    )  # fmt: skip
    return ModelSpec(
        name=_served_name(model), path=str(model.model), layout=layout, n_heads=0, kv_heads=0, head_dim=0,
        vocab_size=model.get_vocab_size(), max_context_tokens=model.max_model_len, eos_tokens=(),
    )  # fmt: skip


def _served_name(model: Any) -> str:
    name = model.served_model_name
    return str(name[0] if isinstance(name, list) else name)


def _fingerprint(model: Any, extra: Mapping[str, Any]) -> str:
    """All that shapes a token's KV: the weights and how vLLM was told to compute with them."""
    weights = extra.get("model_version")
    if not weights:
        folder = Path(str(model.model))
        if not folder.is_dir():
            raise ConfigError(
                f'{model.model} is no local folder; name its weights by "model_version" in kv_connector_extra_config'
            )
        weights = weights_fingerprint(folder)
    how = (weights, str(model.dtype), str(model.quantization), repr(sorted(_overrides(model).items())), _minor())
    return hashlib.blake2b(repr(how).encode(), digest_size=16, person=b"dualpath-vllm").hexdigest()


def _overrides(model: Any) -> dict[str, Any]:
    overrides = model.hf_overrides
    return dict(overrides) if isinstance(overrides, Mapping) else {"hf_overrides": repr(overrides)}


def _minor() -> str:
    """Kernels, and with them what lies in memory, may change between minor versions."""
    return ".".join((installed_version() or "").split(".")[:2])
