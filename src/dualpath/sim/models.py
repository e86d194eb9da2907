"""The shape of a model: what a token's KV weighs and what computing it takes, from any Hugging Face config.json.

Data files hold the same fields as a config.json, each with its source, and how weights and KV are stored.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.sim.attention import Attention, read_attention
from dualpath.sim.config_fields import DTYPE_BYTES, Fields, dtype_of
from dualpath.sim.facts import Fact, find_data, read_facts

NORM_KERNELS = 2  # of a layer, and below those of its feed-forward part: assumptions, counted as in attention.py
DENSE_KERNELS = 3
EXPERT_KERNELS = 10  # router, choice, permutations, quantization, grouped products, shared experts


class FeedForward(msgspec.Struct, frozen=True, kw_only=True):
    """Gated feed-forward parts; parameters are of one layer, or of one expert."""

    dense_layers: int  # with one plain feed-forward part
    dense_parameters: int
    moe_layers: int  # with a router and experts
    experts: int
    chosen: int  # experts that a token goes through, shared ones not counted
    expert_parameters: int
    shared_parameters: int  # shared experts and router


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """All that times and sizes depend on. `facts` keeps the sources of a data file."""

    name: str
    layers: int
    hidden: int
    attention: Attention
    feed_forward: FeedForward
    embedding_parameters: int  # input and output; once when tied
    weight_dtype: str
    expert_dtype: str
    kv_dtype: str
    facts: dict[str, Fact] = {}

    @property
    def is_moe(self) -> bool:
        """Whether tokens choose experts."""
        return self.feed_forward.moe_layers > 0

    @property
    def kernels(self) -> int:
        """That one forward pass starts."""
        ff = self.feed_forward
        in_each_layer = NORM_KERNELS + self.attention.kernels
        return self.layers * in_each_layer + ff.dense_layers * DENSE_KERNELS + ff.moe_layers * EXPERT_KERNELS

    @property
    def kv_bytes_per_token(self) -> int:
        """Of all layers: what one token takes in a full block."""
        return self.layers * self.attention.token_bytes

    def loaded_bytes(self, tokens: int) -> int:
        """KV that extending a prefix of `tokens` needs: layers with a sliding window need no more than it."""
        attention = self.attention
        window = min(tokens, attention.window_tokens) if attention.window_layers else 0
        full_layers = self.layers - attention.window_layers
        return attention.token_bytes * (full_layers * tokens + attention.window_layers * window)

    @property
    def parameters(self) -> int:
        """All, embeddings included, as publishers count them."""
        ff = self.feed_forward
        routed = ff.moe_layers * ff.experts * ff.expert_parameters
        return self._common_parameters + routed

    @property
    def active_parameters(self) -> int:
        """Those that one token goes through, embeddings included, as publishers count them."""
        ff = self.feed_forward
        return self._common_parameters + ff.moe_layers * ff.chosen * ff.expert_parameters

    @property
    def _common_parameters(self) -> int:
        ff = self.feed_forward
        layers = self.layers * self.attention.parameters
        return (
            layers + ff.dense_layers * ff.dense_parameters + ff.moe_layers * ff.shared_parameters
            + self.embedding_parameters
        )  # fmt: skip

    def prefill_flops(self, cached: int, new: int) -> float:
        """Of `new` tokens behind `cached` ones: two a parameter that is active, and attention's pairs."""
        return 2.0 * self.active_parameters * new + self.attention.flops(self.layers, cached, new)

    @property
    def weight_bytes(self) -> float:
        """All parameters as they are stored."""
        ff = self.feed_forward
        return self.common_bytes + ff.moe_layers * ff.experts * self.expert_bytes

    @property
    def expert_bytes(self) -> float:
        """One expert of one layer."""
        return self.feed_forward.expert_parameters * DTYPE_BYTES[self.expert_dtype]

    @property
    def embedding_bytes(self) -> float:
        """Embeddings, which are kept in 16 bits where layers take less."""
        return self.embedding_parameters * max(2, DTYPE_BYTES[self.weight_dtype])

    @property
    def common_bytes(self) -> float:
        """All but the routed experts."""
        layers = self._common_parameters - self.embedding_parameters
        return layers * DTYPE_BYTES[self.weight_dtype] + self.embedding_bytes


def load_model(name_or_path: str) -> ModelShape:
    """A carried data file's name, a TOML file, a config.json, or its folder; ConfigError names what is missing."""
    file = find_data("models", name_or_path)
    if file.is_dir():
        file = file / "config.json"
    if file.suffix == ".toml":
        facts = read_facts(file)
        config = {name: fact.value for name, fact in facts.items()}
        return msgspec.structs.replace(model_from_config(file.stem, config), facts=facts)
    return model_from_config(file.parent.name if file.stem == "config" else file.stem, _read_json(file))


def model_from_config(name: str, config: dict[str, Any]) -> ModelShape:
    """The shape that a config.json describes. kv_dtype, weight_dtype and expert_dtype may be given besides."""
    config = {**config.get("text_config", {}), **{k: v for k, v in config.items() if k != "text_config"}}
    fields = Fields(name, config)
    layers, hidden = fields.count("num_hidden_layers"), fields.count("hidden_size")
    weight_dtype, expert_dtype, kv_dtype = (dtype_of(fields, part) for part in ("weight", "expert", "kv"))
    embeddings = 1 if fields.flag("tie_word_embeddings") else 2
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        attention=read_attention(fields, layers, hidden, kv_dtype),
        feed_forward=_read_feed_forward(fields, layers, hidden),
        embedding_parameters=embeddings * fields.count("vocab_size") * hidden,
        weight_dtype=weight_dtype,
        expert_dtype=expert_dtype,
        kv_dtype=kv_dtype,
    )


def _read_feed_forward(fields: Fields, layers: int, hidden: int) -> FeedForward:
    """Gate, up and down projection; experts under the names of the DeepSeek, Qwen, Mixtral and gpt-oss families."""
    experts = fields.first("n_routed_experts", "num_experts", "num_local_experts")
    if not experts:
        size = fields.count("intermediate_size")
        return FeedForward(
            dense_layers=layers, dense_parameters=3 * hidden * size,
            moe_layers=0, experts=0, chosen=0, expert_parameters=0, shared_parameters=0,
        )  # fmt: skip
    size = fields.first("moe_intermediate_size") or fields.count("intermediate_size")
    dense = _dense_layers(fields, layers)
    shared_size = fields.first("shared_expert_intermediate_size") or (fields.first("n_shared_experts") or 0) * size
    return FeedForward(
        dense_layers=dense,
        dense_parameters=3 * hidden * fields.count("intermediate_size") if dense else 0,
        moe_layers=layers - dense,
        experts=experts,
        chosen=fields.count("num_experts_per_tok"),
        expert_parameters=3 * hidden * size,
        shared_parameters=hidden * (3 * shared_size + experts),
    )


def _dense_layers(fields: Fields, layers: int) -> int:
    """Layers without experts, in a model that has them."""
    first = fields.first("first_k_dense_replace") or 0
    step = fields.first("decoder_sparse_step") or 1
    plain = set(fields.names("mlp_only_layers"))
    return sum(layer < first or (layer + 1) % step != 0 or layer in plain for layer in range(layers))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file} is no model's config.json: it holds no object")
    return config
