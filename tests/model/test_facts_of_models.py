"""Sizes worked out from config.json agree with what the models' makers publish."""

import json
from pathlib import Path
from typing import Any

import pytest

from disagg.errors import StartError
from disagg.models.facts import ModelFacts, facts_of_folder, find_facts

GIB = 1 << 30
# billions of parameters (model cards, technical reports), KV bytes a token in 16 bits: layers * what one keeps * 2
PUBLISHED = {
    "deepseek-ai/DeepSeek-V3": (671, 61 * (512 + 64) * 2),
    "deepseek-ai/DeepSeek-R1": (671, 61 * (512 + 64) * 2),
    "moonshotai/Kimi-K2-Instruct": (1026, 61 * (512 + 64) * 2),
    "Qwen/Qwen3-235B-A22B": (235, 94 * 2 * 4 * 128 * 2),
    "Qwen/Qwen3-30B-A3B": (30.5, 48 * 2 * 4 * 128 * 2),
    "Qwen/Qwen3-32B": (32.8, 64 * 2 * 8 * 128 * 2),
    "Qwen/Qwen3-8B": (8.2, 36 * 2 * 8 * 128 * 2),
    "Qwen/Qwen3.5-397B-A17B": (397, 15 * 2 * 2 * 256 * 2),  # a quarter of the layers keep KV
    "meta-llama/Llama-3.3-70B-Instruct": (70.6, 320 * 1024),
    "meta-llama/Llama-3.1-405B-Instruct": (405, 126 * 2 * 8 * 128 * 2),
    "openai/gpt-oss-120b": (116.8, 36 * 2 * 8 * 64 * 2),
    "openai/gpt-oss-20b": (20.9, 24 * 2 * 8 * 64 * 2),
    "smollm2": (0.135, 30 * 2 * 3 * 64 * 2),
}


def of_table(model: str) -> ModelFacts:
    facts = find_facts(model)
    assert facts is not None
    return facts


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_and_kv_bytes_are_as_published(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path))
    billions, kv_bytes = PUBLISHED[model]
    facts = of_table(model)
    assert facts.parameters.total / 1e9 == pytest.approx(billions, rel=0.005)
    assert facts.kv_bytes_per_token() == kv_bytes
    assert facts.source.startswith("https://huggingface.co/")


def test_quantised_weights_have_the_published_bytes() -> None:
    assert of_table("openai/gpt-oss-120b").weight_bytes / GIB == pytest.approx(60.8, rel=0.01)  # its model card
    deepseek = of_table("deepseek-ai/DeepSeek-V3")
    assert (deepseek.quantisation, deepseek.weight_bytes / 1e9) == ("fp8", pytest.approx(673, rel=0.005))
    assert of_table("Qwen/Qwen3-235B-A22B").weight_bytes / 1e9 == pytest.approx(470, rel=0.005)


def test_a_quantised_copy_has_its_bases_shape_and_its_own_bytes() -> None:
    llama = of_table("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic")
    assert llama.parameters == of_table("meta-llama/Llama-3.3-70B-Instruct").parameters
    assert (llama.quantisation, llama.weight_bytes / 1e9) == ("fp8", pytest.approx(72.7, rel=0.01))
    deepseek = of_table("nvidia/DeepSeek-V3.1-NVFP4")
    assert (deepseek.quantisation, deepseek.weights.attention / deepseek.parameters.attention) == ("nvfp4", 2)
    assert deepseek.weight_bytes / 1e9 == pytest.approx(396, rel=0.02)


def test_a_smaller_kv_dtype_keeps_fewer_bytes() -> None:
    deepseek, v32 = of_table("deepseek-ai/DeepSeek-V3"), of_table("deepseek-ai/DeepSeek-V3.2")
    assert deepseek.kv_bytes_per_token("fp8_e4m3") == 61 * 576
    assert v32.kv_bytes_per_token() == 61 * (576 * 2 + 132)  # the indexer's key, in fp8 with its scale


def test_layers_with_a_window_stop_growing() -> None:
    gpt = of_table("openai/gpt-oss-120b")
    layer = 2 * 8 * 64 * 2
    assert gpt.kv_bytes(100) == 36 * 100 * layer
    assert gpt.kv_bytes(10_000) == 18 * (10_000 + 128) * layer


WINDOWED: dict[str, tuple[dict[str, Any], int]] = {
    "Mistral says a window, and SGLang keeps all": ({"architectures": ["MistralForCausalLM"]}, 0),
    "Gemma 3, too": ({"architectures": ["Gemma3ForCausalLM"], "sliding_window_pattern": 6}, 0),
    "as do those that name their layers": (
        {"architectures": ["Gemma3ForCausalLM"], "layer_types": ["sliding_attention"] * 11 + ["full_attention"]},
        0,
    ),
    "every sixth layer is full": ({"architectures": ["Gemma4ForCausalLM"], "sliding_window_pattern": 6}, 10),
    "every fourth of Llama 4": ({"architectures": ["Llama4ForConditionalGeneration"]}, 9),
    "layer by layer": ({"architectures": ["MiMoV2FlashForCausalLM"], "hybrid_layer_pattern": [1, 1, 0] * 4}, 8),
    "said by the model itself": ({"architectures": ["Mine"], "is_hybrid_swa": True, "sliding_window_pattern": 2}, 6),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_count_where_sglang_heeds_them(name: str, tmp_path: Path) -> None:
    changes, sliding = WINDOWED[name]
    facts = facts_of_folder(a_folder(tmp_path, num_hidden_layers=12, sliding_window=128, **changes))
    assert facts.sliding_layers == sliding
    assert facts.kv_bytes(1000) == (sliding * 128 + (12 - sliding) * 1000) * facts.layer_kv_bytes()


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 512),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 2048),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}, 512),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 512),
        ({"model_max_length": 300}, 300),
        ({"max_position_embeddings": None}, 0),
    ],
)
def test_the_context_is_as_sglang_reads_it(changes: dict[str, Any], tokens: int, tmp_path: Path) -> None:
    assert facts_of_folder(a_folder(tmp_path, **changes)).context_length == tokens


@pytest.mark.parametrize(("dtype", "of_16_bits"), [("nvfp4", 9 / 32), ("fp4_mx_block16", 9 / 32), ("mxfp8", 33 / 64)])
def test_every_kv_dtype_of_sglang_has_its_bytes(dtype: str, of_16_bits: float) -> None:
    llama = of_table("meta-llama/Llama-3.1-8B-Instruct")
    assert llama.kv_bytes_per_token(dtype) == llama.kv_bytes_per_token() * of_16_bits


def test_a_hub_id_nobody_here_knows_has_no_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert find_facts("somebody/some-model") is None


def a_folder(folder: Path, **changes: Any) -> Path:
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, "tie_word_embeddings": True,
        "max_position_embeddings": 512, "torch_dtype": "float16",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_folder_is_measured_by_its_files(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    estimated = facts_of_folder(folder)
    assert not estimated.weights_measured
    assert estimated.weight_bytes == 2 * (64 * 1000 + 2 * (3 * 64 * 128 + 64 * 16 * (2 * 4 + 2 * 2)))
    (folder / "model-1.safetensors").write_bytes(bytes(3000))
    (folder / "model-2.safetensors").write_bytes(bytes(2000))
    assert facts_of_folder(folder).weight_bytes == pytest.approx(5000, abs=3)
    (folder / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 9000}}')
    measured = facts_of_folder(folder)
    assert measured.weights_measured
    assert measured.weight_bytes == pytest.approx(9000, abs=3)


def test_a_model_of_the_hubs_cache_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    repository = tmp_path / "hub" / "models--somebody--some-model"
    folder = a_folder(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert of_table("somebody/some-model").source == str(folder)


def test_the_language_model_of_one_that_sees(tmp_path: Path) -> None:
    text = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 10, "head_dim": 16}
    folder = a_folder(tmp_path, text_config=text)
    assert (facts_of_folder(folder).layers, facts_of_folder(folder).hidden) == (3, 32)


def test_numbers_may_be_said_layer_by_layer(tmp_path: Path) -> None:
    dense = facts_of_folder(a_folder(tmp_path / "dense", intermediate_size=[64, 192]))
    assert dense.parameters == facts_of_folder(a_folder(tmp_path / "alike")).parameters
    experts = {"n_routed_experts": 8, "moe_intermediate_size": [32, 32], "moe_layer_freq": [0, 1]}
    mixed = facts_of_folder(a_folder(tmp_path / "mixed", **experts))
    assert (mixed.moe_layers, mixed.parameters.routed, mixed.parameters.dense) == (1, 8 * 3 * 64 * 32, 3 * 64 * 128)


QUANTISED: dict[str, tuple[dict[str, Any], str]] = {
    "awq": ({"quant_method": "awq", "bits": 4}, "int4"),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "config_groups": {"0": {"weights": {"num_bits": 8, "type": "float"}}}},
        "fp8",
    ),
    "not known": ({"quant_method": "quip"}, "quip"),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantisation_is_read(name: str, tmp_path: Path) -> None:
    said, expected = QUANTISED[name]
    assert facts_of_folder(a_folder(tmp_path, quantization_config=said)).quantisation == expected


BROKEN: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "is not JSON"),
    "a list": ("[]", "holds a list"),
    "no layers": ('{"hidden_size": 1}', "says no"),
    "layers that are no number": (
        '{"hidden_size": 8, "num_hidden_layers": "2", "num_attention_heads": 1}',
        "no whole number",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_config_that_cannot_be_understood_is_told(name: str, tmp_path: Path) -> None:
    text, told = BROKEN[name]
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(StartError, match=told) as caught:
        facts_of_folder(tmp_path)
    assert caught.value.where.endswith("config.json")
    assert caught.value.would_do
