"""A random-weight Llama that costs almost nothing and still makes every cached byte matter.

Its attention is peaked (scores with a deviation of about SCORE_SPREAD) and outweighs the residual stream, so
greedy text does not settle into a loop, and one wrong block among some thousand tokens of KV changes it. It
speaks printable ASCII, one byte a token, so that its text turns back into the same tokens.
"""

import string
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dualpath.core.errors import ConfigError

SPECIALS = ("<|pad|>", "<|start|>", "<|end|>")  # ids 256, 257, 258
END = 258
PRINTABLE = sorted(string.printable[:95].encode())
SCORE_SPREAD = 5.0
ATTENTION_GAIN = 2.0
END_GAIN = 0.8  # below 1, so that generations run to some hundred tokens before they end by themselves
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


Matrix = NDArray[np.float32]


class TinyShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and seed; the default holds 8 KiB of KV a token in float32."""

    layers: int = 4
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 128
    hidden: int = 256
    intermediate: int = 512
    vocab: int = 512
    context: int = 131072
    seed: int = 0


def parse_shape(text: str) -> TinyShape:
    """The shape that "tiny" or "tiny:layers=4,seed=1" names; ConfigError lists the fields."""
    _, _, settings = text.partition(":")
    pairs = dict(part.split("=", 1) for part in settings.split(",") if "=" in part)
    try:
        shape = msgspec.convert(pairs, TinyShape, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--model {text}: {error}; fields are {', '.join(TinyShape.__struct_fields__)}") from None
    malformed = len(pairs) != (settings.count(",") + 1 if settings else 0)
    positive = min(shape.layers, shape.kv_heads, shape.head_dim, shape.hidden, shape.intermediate) > 0
    if malformed or not positive or shape.seed < 0 or shape.context < 2:
        raise ConfigError(f"--model {text}: write for example tiny:layers=4,heads=2,seed=1, with sizes above 0")
    if shape.heads < 1 or shape.heads % shape.kv_heads or shape.head_dim % 2 or shape.vocab <= END:
        raise ConfigError(f"--model {text}: heads must divide by kv_heads, head_dim by 2; vocab must exceed {END}")
    return shape


def write_tiny(shape: TinyShape, folder: Path) -> None:
    """A complete Hugging Face folder, the same bytes for the same shape."""
    save_file(_weights(shape), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(shape))
    _write_json(folder / "generation_config.json", {"eos_token_id": END, "pad_token_id": 256, "bos_token_id": 257})
    _tokenizer(shape.vocab).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": SPECIALS[0], "bos_token": SPECIALS[1],
        "eos_token": SPECIALS[2], "model_max_length": shape.context, "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    })  # fmt: skip


def _config(shape: TinyShape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab, "max_position_embeddings": shape.context, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "hidden_act": "silu",
        "tie_word_embeddings": False, "eos_token_id": END, "bos_token_id": 257, "pad_token_id": 256,
    }  # fmt: skip


def _weights(shape: TinyShape) -> dict[str, Matrix]:
    """Gaussian weights; a gain of 1 keeps the size of what passes through."""
    generator = np.random.Generator(np.random.Philox(shape.seed))

    def matrix(rows: int, columns: int, gain: float) -> Matrix:
        return generator.standard_normal((rows, columns), dtype=np.float32) * np.float32(gain / columns**0.5)

    hidden, q_rows, kv_rows = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights: dict[str, Matrix] = {
        "model.embed_tokens.weight": matrix(shape.vocab, hidden, hidden**0.5),
        "model.norm.weight": np.ones(hidden, dtype=np.float32),
        "lm_head.weight": _speak_ascii(matrix(shape.vocab, hidden, 3.0)),
    }
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        weights |= {
            at + "self_attn.q_proj.weight": matrix(q_rows, hidden, SCORE_SPREAD**0.5),
            at + "self_attn.k_proj.weight": matrix(kv_rows, hidden, SCORE_SPREAD**0.5),
            at + "self_attn.v_proj.weight": matrix(kv_rows, hidden, 1.0),
            at + "self_attn.o_proj.weight": matrix(hidden, q_rows, ATTENTION_GAIN),
            at + "mlp.gate_proj.weight": matrix(shape.intermediate, hidden, 1.0),
            at + "mlp.up_proj.weight": matrix(shape.intermediate, hidden, 1.0),
            at + "mlp.down_proj.weight": matrix(hidden, shape.intermediate, 1.0),
            at + "input_layernorm.weight": np.ones(hidden, dtype=np.float32),
            at + "post_attention_layernorm.weight": np.ones(hidden, dtype=np.float32),
        }
    return weights


def _speak_ascii(lm_head: Matrix) -> Matrix:
    """Only printable bytes and the end token can win: a zero row's logit 0 is never the best."""
    spoken = np.zeros_like(lm_head)
    spoken[PRINTABLE] = lm_head[PRINTABLE]
    spoken[END] = lm_head[END] * END_GAIN
    return spoken


def _tokenizer(vocab: int) -> Tokenizer:
    """Token i is byte i; ids after the specials are never made by text but have a name to be shown by."""
    ids = {name: index for index, name in enumerate([*_byte_names(), *SPECIALS])}
    fillers = {f"<|{index}|>": index for index in range(len(ids), vocab)}
    tokenizer = Tokenizer(models.BPE(vocab=ids | fillers, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return tokenizer


def _byte_names() -> list[str]:
    """How byte-level tokenizers write each byte: printable Latin-1 as itself, others from U+0100 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2))
