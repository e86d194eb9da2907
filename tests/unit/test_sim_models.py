"""Shapes of models: against what their publishers count, and from any config.json."""

import json

import pytest

from dualpath.core.errors import ConfigError
from dualpath.sim.attention import pairs
from dualpath.sim.cache_compute import cache_compute_ratio, paper_ratios
from dualpath.sim.models import load_model, model_from_config

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
    "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
MLA = {
    "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters", "active", "kv_bytes"),
    [  # in billions, as published; ours count both embeddings as active
        ("deepseek-v3", 671, 37, 61 * 656),
        ("deepseek-v3.2", 671, 37, 61 * (656 + 132)),
        ("qwen2.5-32b", 32.5, 32.5, 262_144),
        ("qwen3-235b-a22b", 235, 22, 96_256),
        ("gpt-oss-120b", 117, 5.1, 36_864),
        ("deepseek-27b", 27, 4.8, 30 * (656 + 132)),
    ],
)
def test_sizes_are_as_published(name, parameters, active, kv_bytes):
    model = load_model(name)
    assert model.parameters / 1e9 == pytest.approx(parameters, rel=0.03)
    assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.13)
    assert model.kv_bytes_per_token == kv_bytes


@pytest.mark.parametrize("ratio", paper_ratios(), ids=lambda ratio: f"{ratio.model}-{ratio.context_tokens}")
def test_cache_compute_ratio_is_within_15_percent_of_the_papers(ratio):
    assert abs(ratio.difference) < 0.15


def test_models_keep_the_papers_order_of_ratios():
    names = ["deepseek-v3", "deepseek-v3.2", "qwen3-235b-a22b", "gpt-oss-120b", "qwen2.5-32b"]
    ratios = [cache_compute_ratio(load_model(name), 32 * 1024) for name in names]
    assert ratios == sorted(ratios)


def test_llama_by_hand():
    model = model_from_config("llama", LLAMA)
    assert model.parameters / 1e9 == pytest.approx(8.03, rel=0.001)
    assert model.kv_bytes_per_token == 2 * 8 * 128 * 2 * 32
    assert model.weight_bytes == 2 * model.parameters
    one_pair = model.prefill_flops(1, 1) - model.prefill_flops(0, 1)
    assert one_pair == 4 * 32 * 128 * 32


@pytest.mark.parametrize(
    ("family", "windowed"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, 32),
        ({"model_type": "mistral", "sliding_window": None}, 0),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, 0),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 28}, 4),
        ({"model_type": "gpt_oss", "sliding_window": 128}, 16),
        ({"sliding_window": 128, "layer_types": ["sliding_attention"] * 24 + ["full_attention"] * 8}, 24),
    ],
)
def test_layers_that_slide(family, windowed):
    model = model_from_config("m", {**LLAMA, **family})
    assert model.attention.window_layers == windowed
    everything = model.kv_bytes_per_token * 100_000
    assert (model.loaded_bytes(100_000) < everything) == bool(windowed)


@pytest.mark.parametrize(
    ("experts", "moe_layers", "routed"),
    [
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, 32, 14336),  # mixtral
        ({"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 1408,
          "shared_expert_intermediate_size": 5632}, 32, 1408),  # qwen2_moe
        ({"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "decoder_sparse_step": 2,
          "mlp_only_layers": [0, 1]}, 15, 1408),  # layers 1, 3, 5, ... have experts, but not the first of them
        ({"n_routed_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "n_shared_experts": 2,
          "first_k_dense_replace": 1}, 31, 1408),  # deepseek
    ],
)  # fmt: skip
def test_families_of_experts(experts, moe_layers, routed):
    ff = model_from_config("m", {**LLAMA, **experts}).feed_forward
    assert (ff.moe_layers, ff.dense_layers, ff.expert_parameters) == (moe_layers, 32 - moe_layers, 3 * 4096 * routed)


def test_latent_attention_with_and_without_low_rank_queries():
    plain = model_from_config("m", {**LLAMA, **MLA})
    assert plain.kv_bytes_per_token == 576 * 2 * 32
    assert (
        plain.attention.parameters > model_from_config("m", {**LLAMA, **MLA, "q_lora_rank": 512}).attention.parameters
    )


def test_dtypes_come_from_the_quantization_or_the_config():
    fp8 = model_from_config("m", {**LLAMA, "quantization_config": {"quant_method": "fp8"}})
    assert (fp8.weight_dtype, fp8.expert_dtype, fp8.kv_dtype) == ("fp8", "fp8", "bfloat16")
    mxfp4 = model_from_config("m", {**LLAMA, "quantization_config": {"quant_method": "mxfp4"}})
    assert (mxfp4.weight_dtype, mxfp4.expert_dtype) == ("bfloat16", "mxfp4")
    with pytest.raises(ConfigError, match="int3"):
        model_from_config("m", {**LLAMA, "kv_dtype": "int3"})


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"])
def test_a_missing_field_is_named(field):
    config = {name: value for name, value in LLAMA.items() if name != field}
    with pytest.raises(ConfigError, match=field):
        model_from_config("m", config)


@pytest.mark.parametrize("wrong", [-1, 1.5, "32", True])
def test_a_field_that_is_no_count_is_named(wrong):
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        model_from_config("m", {**LLAMA, "num_hidden_layers": wrong})


def test_a_folder_or_its_config_json(tmp_path):
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert load_model(str(folder)) == load_model(str(folder / "config.json"))
    assert load_model(str(folder)).name == "my-llama"
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        load_model(str(folder))


def test_the_language_part_of_a_model_with_images():
    assert model_from_config("m", {"model_type": "vl", "text_config": LLAMA}).layers == 32


def test_pairs_against_a_count():
    for cached, new, limit in [(0, 7, 0), (5, 7, 0), (0, 7, 3), (2, 7, 4), (9, 7, 4), (1, 2, 50)]:
        counted = sum(min(cached + i + 0.5, limit or 1e9) for i in range(new))
        assert pairs(cached, new, limit) == pytest.approx(counted, abs=0.5)
