"""Random weights in a real architecture. A program of its own: `tiny_weights.py KIND TOKENIZER_FOLDER FOLDER`.

Way:   tiny -> [tiny_weights] -> manifest
Alone: as convert.py, so nothing of disagg is imported here
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# A range of 0.2 spreads the logits: greedy choices then do not hang on rounding.
SHAPE: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip
GROUPED_QUERY = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 4096,
    "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
LATENT = {
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "rope_parameters": YARN,
}  # fmt: skip
# Widths as published: SGLang's Triton kernels for a GPU are made for these.
LATENT_AS_PUBLISHED = LATENT | {
    "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": 64, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
GROUPED_EXPERTS = {
    "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "routed_scaling_factor": 1.0, "n_group": 2, "topk_group": 1, "norm_topk_prob": True,
}  # fmt: skip
# Keys that published checkpoints have and SGLang reads, but transformers does not write.
DSV3_KEYS = {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}


def make(kind: str, tokenizer_folder: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3Config, Qwen3Config, Qwen3MoeConfig

    configs = {
        "qwen3": lambda: Qwen3Config(**SHAPE, **GROUPED_QUERY),
        "qwen3moe": lambda: Qwen3MoeConfig(**SHAPE, **GROUPED_QUERY, **EXPERTS, norm_topk_prob=True),
        "dsv3": lambda: DeepseekV3Config(**SHAPE, **LATENT, **GROUPED_EXPERTS),
        "dsv3gpu": lambda: DeepseekV3Config(**SHAPE, **LATENT_AS_PUBLISHED, **GROUPED_EXPERTS),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[kind](), dtype=torch.float32)
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(str(folder))
    if kind.startswith("dsv3"):
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | DSV3_KEYS, indent=2), encoding="utf-8")


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # ends with the process that started it
    make(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
