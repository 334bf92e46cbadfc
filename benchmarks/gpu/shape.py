"""A model of a real one's shape with random weights: what is measured is time, not text.

Way:   compare, burst -> [make_shape] -> a folder with config.json and tokenizer.json, no weights (load_format: dummy)
       SGLang plugin -> [activate] -> in engines with BENCH_ONE_LAYER=1 all layers use the first one's weights, or of
       layers of two kinds (dense, experts) those of the first of their kind
Why:   six engines with 16 GB of weights each do not fit one card beside their KV. One layer of 8B is 386 MB, seven
       times the L2 of an H200: each step reads as many bytes as ever, and SGLang's dummy weights are the same in every
       layer anyway (one seed). The KV stays each layer's own
Text:  every token is one short ASCII word, so that each step of a stream is one event with text, whatever is chosen
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import string
import sys
from pathlib import Path
from typing import Any

ONE_LAYER_VARIABLE = "BENCH_ONE_LAYER"
QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16", "vocab_size": 151936,
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "rope_theta": 1000000,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "use_cache": True,
}  # fmt: skip
# As published but for its depth: 1 dense layer and 9 of experts, not 3 and 58. Without the layer that drafts.
DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 10, "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_attention_heads": 128,
    "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "max_position_embeddings": 40960, "rope_theta": 10000,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True,
}  # fmt: skip
QWEN3_30B_A3B = QWEN3_8B | {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
TINY = QWEN3_8B | {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "torch_dtype": "float32",
}  # fmt: skip
SHAPES = {"qwen3-8b": QWEN3_8B, "qwen3-30b-a3b": QWEN3_30B_A3B, "deepseek-v3": DEEPSEEK_V3, "tiny": TINY}
LAYERS = {"qwen3": "Qwen3DecoderLayer", "qwen3_moe": "Qwen3MoeDecoderLayer", "deepseek_v2": "DeepseekV2DecoderLayer"}


def make_shape(name: str, folder: Path) -> Path:
    """`folder`, filled if it is not yet."""
    if not (folder / "config.json").exists():
        config = SHAPES[name]
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "tokenizer.json", _tokenizer(config["vocab_size"]))
        _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        _write(folder / "generation_config.json", {"eos_token_id": config["eos_token_id"]})
        _write(folder / "config.json", config)
    return folder


def _tokenizer(size: int) -> dict[str, Any]:
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    words = ["Ġ" + "".join(four) for four in itertools.islice(letters, size)]  # Ġ: a space, in ByteLevel's letters
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": words[0]},
    }


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree), encoding="utf-8")


def activate() -> None:
    if os.environ.get(ONE_LAYER_VARIABLE) != "1" or "sglang.srt.managers.scheduler" not in sys.modules:
        return
    for module, name in LAYERS.items():
        _share_weights(getattr(importlib.import_module(f"sglang.srt.models.{module}"), name))
    sys.stderr.write(f"{ONE_LAYER_VARIABLE}: all layers use the weights of the first\n")


def _share_weights(layer: Any) -> None:
    init = layer.__init__
    first: dict[tuple[Any, ...], Any] = {}  # by what the layer has: dense ones and ones with experts differ

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        kind = tuple((name, tuple(weight.shape)) for name, weight in self.named_parameters())
        for ours, theirs in zip(self.modules(), first.setdefault(kind, self).modules(), strict=True):
            ours._parameters.update(theirs._parameters)

    layer.__init__ = __init__
