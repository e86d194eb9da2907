from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dualpath.core.errors import ConfigError
from dualpath.core.model import load_spec
from dualpath.engine.model import PackedModel
from dualpath.engine.probe import PlainKv
from dualpath.engine.profile import measure_prefill_rate, profile_attention
from dualpath.engine.tiny import TinyShape, write_tiny

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 512,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MLA = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 4.0,
    "original_max_position_embeddings": 128, "rope_theta": 10000.0,
}  # fmt: skip
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux"),
    ("Gemma2", {}, "softcap"),
    ("Llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ("Phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 128}, "longrope"),
    ("DeepseekV3", MLA, "MLA"),
    ("Qwen3Next", {"num_experts": 2, "num_experts_per_tok": 1}, "linear_attention"),
    ("Bert", {"is_decoder": False}, "not causal|attention mask"),
    ("Bloom", {"n_head": 4, "n_layer": 2}, "no 'num|each must attend once"),
    ("Llama4Text", {"attention_chunk_size": 64, "num_local_experts": 2, "intermediate_size_mlp": 32}, "chunked"),
]


def save_random(family: str, settings: dict[str, Any], folder: Path) -> None:
    config = getattr(transformers, f"{family}Config")(**(SMALL | settings))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize(("family", "settings", "why"), REFUSED, ids=[family for family, _, _ in REFUSED])
def test_refused_by_name(family: str, settings: dict[str, Any], why: str, tmp_path: Path) -> None:
    save_random(family, settings, tmp_path)
    with pytest.raises(ConfigError, match=why):
        PackedModel.load(load_spec(tmp_path, name="m"))


def test_window_that_is_only_in_the_mask_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 100 tokens cannot show in the probe's few tokens, only in the mask function itself."""
    save_random("Llama", {"sliding_window": 100}, tmp_path)
    sliding = transformers.masking_utils.create_sliding_window_causal_mask
    monkeypatch.setattr("transformers.models.llama.modeling_llama.create_causal_mask", sliding)
    with pytest.raises(ConfigError, match="mask"):
        PackedModel.load(load_spec(tmp_path, name="m"))


def test_state_that_flows_beside_attention_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_random("Llama", {}, tmp_path)
    mlp = transformers.models.llama.modeling_llama.LlamaMLP
    honest = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: honest(self, x + x.roll(1, dims=1)))
    with pytest.raises(ConfigError, match="state beside its KV"):
        PackedModel.load(load_spec(tmp_path, name="m"))


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    write_tiny(TinyShape(layers=2, hidden=32, intermediate=32, head_dim=16, context=600), tmp_path)
    return tmp_path


@pytest.fixture
def tiny(tiny_folder: Path) -> PackedModel:
    return PackedModel.load(load_spec(tiny_folder, name="tiny"), threads=1)


def test_missing_weight_is_refused(tiny_folder: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="q_proj"):
        PackedModel.load(load_spec(tiny_folder, name="tiny"))


def test_unknown_dtype_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="float32"):
        load_spec(tiny_folder, name="tiny", dtype="int4")


def test_wrong_config_is_refused(tiny_folder: Path) -> None:
    config = tiny_folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "unheard-of"'))
    with pytest.raises(ConfigError, match="cannot load"):
        PackedModel.load(load_spec(tiny_folder, name="tiny"))


def test_only_asked_rows_get_logits(tiny: PackedModel) -> None:
    tokens = [5, 6, 7, 8]
    everything = tiny.forward(tokens, range(4), PlainKv().attend([("a", 4)]), range(4))
    some = tiny.forward(torch.tensor(tokens), torch.arange(4), PlainKv().attend([("a", 4)]), [3, 1])
    torch.testing.assert_close(some, everything[[3, 1]])
    assert tiny.forward(tokens, range(4), PlainKv().attend([("a", 4)]), []).shape == (0, tiny.spec.vocab_size)


def test_layers_come_in_order_with_the_documented_shapes(tiny: PackedModel) -> None:
    seen = []

    def attend(layer: int, q: Any, k: Any, v: Any, scaling: float, window: int | None) -> torch.Tensor:
        seen.append((layer, tuple(q.shape), tuple(k.shape), tuple(v.shape), scaling, window))
        return torch.zeros_like(q)

    tiny.forward([1, 2, 3], [0, 1, 2], attend, [2])
    assert seen == [(layer, (3, 2, 16), (3, 2, 16), (3, 2, 16), 0.25, None) for layer in (0, 1)]


def test_one_forward_at_a_time_also_after_an_error(tiny: PackedModel) -> None:
    def nested(*_: Any) -> torch.Tensor:
        tiny.forward([1], [0], PlainKv().attend([("b", 1)]), [0])
        raise AssertionError("the guard let a second forward in")

    with pytest.raises(RuntimeError, match="already running"):
        tiny.forward([1], [0], nested, [0])
    assert tiny.forward([1], [0], PlainKv().attend([("a", 1)]), [0]).shape[0] == 1


def test_profile_covers_points_that_fit_the_context(tiny: PackedModel) -> None:
    samples = profile_attention(tiny, budget_ns=0)
    assert [(cached, new) for cached, new, _ in samples] == [(0, 64), (0, 256), (0, 512)]
    assert all(took_ns > 0 for _, _, took_ns in samples)
    assert profile_attention(tiny, points=[(4096, 256)])[0][:2] == (0, 1)
    assert measure_prefill_rate(tiny) > 0
