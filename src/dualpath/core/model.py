"""What every process must know of the model, read from its Hugging Face folder without torch."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.core.layout import BlockLayout

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class ModelSpec(msgspec.Struct, frozen=True):
    """The facts of a model that the cluster's parts agree on."""

    name: str  # as served under /v1/models
    path: str  # local Hugging Face folder
    layout: BlockLayout
    n_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_tokens: int
    eos_tokens: tuple[int, ...]


def load_spec(
    folder: Path, *, name: str, block_tokens: int = 64, dtype: str = "float32", max_context_tokens: int | None = None,
    version: str | None = None,
) -> ModelSpec:  # fmt: skip
    """Read config.json and fingerprint the weights (or take `version` instead); ConfigError if it is no such folder."""
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"dtype {dtype!r} is unknown; take one of {', '.join(DTYPE_BYTES)}")
    config = _read_json(folder / "config.json")
    eos = _eos_tokens(folder, config)
    try:
        n_heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or n_heads)
        head_dim = int(config.get("head_dim") or config["hidden_size"] // n_heads)
        n_layers = int(config["num_hidden_layers"])
        vocab_size = int(config["vocab_size"])
        context = int(config["max_position_embeddings"])
    except KeyError as missing:
        raise ConfigError(
            f"{folder}/config.json has no {missing}: not a decoder-only model that this version serves"
        ) from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{folder}/config.json is no model's configuration: {error}; download it again") from None
    layout = BlockLayout(
        model=version or weights_fingerprint(folder),
        n_layers=n_layers,
        block_tokens=block_tokens,
        token_bytes=2 * kv_heads * head_dim * DTYPE_BYTES[dtype],
        dtype=dtype,
    )
    return ModelSpec(
        name=name, path=str(folder), layout=layout, n_heads=n_heads, kv_heads=kv_heads, head_dim=head_dim,
        vocab_size=vocab_size, max_context_tokens=min(context, max_context_tokens or context), eos_tokens=eos,
    )  # fmt: skip


def weights_fingerprint(folder: Path) -> str:
    """Hash of config.json (rope and all that shapes the KV) and of the bytes of all safetensors files.

    RL changes weights under one path, so names and times are not enough; large models pass a version string instead.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"no *.safetensors in {folder}; give a local Hugging Face folder with safetensors weights")
    digest = hashlib.blake2b(digest_size=16, person=b"dualpath-model")
    for path in [folder / "config.json", *weights]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _eos_tokens(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """End-of-sequence ids; generation_config.json, where present, overrides config.json, as in transformers."""
    generation = folder / "generation_config.json"
    eos = (_read_json(generation) if generation.exists() else {}).get("eos_token_id", config.get("eos_token_id"))
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; --model takes smollm2, tiny or a local Hugging Face folder"
        ) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
