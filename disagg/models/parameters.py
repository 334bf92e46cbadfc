"""How many parameters, and bytes, a model has in which of its parts, from the numbers in its config.json.

Way:   config.json -> hub_config -> [parameters] -> facts -> memory a GPU
Out:   the main model's matrices. Biases, norms and scales are left out (below 1 %), and draft layers: DeepSeek-V3's
       files hold 685B, of which 14B are loaded only for speculative decoding
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from disagg.models.hub_config import HubConfig

FLOAT_BYTES = {"float32": 4.0, "float64": 8.0}  # the others, bfloat16 and float16, have 2
# With their scales: a byte for 32 (mxfp4) or 16 (nvfp4) numbers of half a byte; fp8's, one for 128 * 128, are nothing.
QUANTISED_BYTES = {"fp8": 1.0, "int8": 1.0, "mxfp4": 0.53125, "nvfp4": 0.5625, "int4": 0.53125}


@dataclass(frozen=True, slots=True)
class Parts:
    """Counts, or bytes, of the whole model, in the parts that parallelism and quantisation treat differently."""

    embedding: int  # in and out; once when they are tied
    attention: int
    dense: int  # feed-forward of the layers without experts
    shared: int  # experts that every token goes through
    routed: int
    router: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))

    def each(self, change: Callable[[str, int], float]) -> Parts:
        return Parts(*(round(change(part.name, getattr(self, part.name))) for part in fields(self)))


def count_parameters(config: HubConfig) -> Parts:
    number = config.number
    hidden, layers, moe_layers = number("hidden_size"), number("num_hidden_layers"), config.moe_layers
    matrix = hidden * (2 if config.text("hidden_act") == "relu2" else 3)  # gate, up, down
    expert = matrix * config.width("moe_intermediate_size", "intermediate_size") if moe_layers else 0
    shared = number("n_shared_experts", default=0) * expert
    shared += matrix * number("shared_expert_intermediate_size", default=0)
    dense_layers = layers - moe_layers
    return Parts(
        embedding=number("vocab_size") * hidden * (1 if config.keys.get("tie_word_embeddings") else 2),
        attention=config.layers.linear * _linear(config) + (layers - config.layers.linear) * _attention(config),
        dense=dense_layers * matrix * config.width("intermediate_size") if dense_layers else 0,
        shared=moe_layers * shared,
        routed=moe_layers * config.experts * expert,
        router=moe_layers * config.experts * hidden,
    )


def head_dim(config: HubConfig) -> int:
    heads = max(1, config.number("num_attention_heads"))
    return config.number("head_dim", default=config.number("hidden_size") // heads)


def _attention(config: HubConfig) -> int:
    number, hidden = config.number, config.number("hidden_size")
    heads, latent = number("num_attention_heads"), number("kv_lora_rank", default=0)
    if not latent:
        width, kv_heads = head_dim(config), number("num_key_value_heads", default=heads)
        gated = 2 if config.keys.get("attn_output_gate") else 1
        return hidden * width * (heads * (1 + gated) + 2 * kv_heads)
    rope, nope, values = number("qk_rope_head_dim"), number("qk_nope_head_dim"), number("v_head_dim")
    query_rank = number("q_lora_rank", default=0)
    query = query_rank * (hidden + heads * (nope + rope)) if query_rank else hidden * heads * (nope + rope)
    index_heads, index_width = number("index_n_heads", default=0), number("index_head_dim", default=0)
    index = query_rank * index_heads * index_width + hidden * (index_width + index_heads)  # DeepSeek-V3.2's indexer
    return query + hidden * (latent + rope) + latent * heads * (nope + values) + heads * values * hidden + index


def _linear(config: HubConfig) -> int:
    """Gated DeltaNet (Qwen3-Next, Qwen3.5): queries and keys, values and their gate, the way out."""
    if not config.layers.linear:
        return 0
    number, hidden = config.number, config.number("hidden_size")
    keys = number("linear_num_key_heads") * number("linear_key_head_dim")
    values = number("linear_num_value_heads") * number("linear_value_head_dim")
    return hidden * (2 * keys + 3 * values + 2 * number("linear_num_value_heads"))


def quantisation_of(config: HubConfig, separate: dict[str, Any] | None) -> str:
    """fp8, nvfp4, … or nothing. `separate` is hf_quant_config.json, where NVIDIA's tool says it."""
    said = config.keys.get("quantization_config") or (separate or {}).get("quantization")
    if not isinstance(said, dict):
        return ""
    method = str(said.get("quant_algo") or said.get("quant_method") or "").lower()
    if method in ("awq", "gptq") or "w4" in method:
        return "int4"
    if method == "compressed-tensors":
        return _of_compressed_tensors(said)
    return next((known for known in QUANTISED_BYTES if known in method), method)


def weight_bytes(counts: Parts, dtype: str, quantisation: str, unquantised: str) -> Parts:
    """`unquantised` is the text of the list of modules that the checkpoint leaves as they were."""
    plain = FLOAT_BYTES.get(dtype, 2.0)
    quantised = QUANTISED_BYTES.get(quantisation, plain)
    kept = {"embedding", "router"} | ({"attention"} if "self_attn" in unquantised else set())
    return counts.each(lambda part, count: count * (plain if part in kept else quantised))


def modules_left(config: HubConfig, separate: dict[str, Any] | None) -> str:
    said = config.keys.get("quantization_config") or (separate or {}).get("quantization")
    if not isinstance(said, dict):
        return ""
    return str([said.get(key) for key in ("modules_to_not_convert", "exclude_modules", "ignore")])


def _of_compressed_tensors(said: dict[str, Any]) -> str:
    groups = said.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    kind = f"{weights.get('type')}{weights.get('num_bits')}" if isinstance(weights, dict) else ""
    return {"float8": "fp8", "int8": "int8", "int4": "int4", "float4": "nvfp4"}.get(kind, "")
