"""Engines that together use what deployments of SGLang use: the emitted arguments of each must be any release's own."""

from __future__ import annotations

from typing import Any

from disagg.roles import Role
from disagg.sglang.arguments import Ports, engine_arguments, member_arguments
from disagg.sglang.versions import neutral

GPUS_OF_A_NODE = 8
WIDE_EP = {"tp_size": 32, "dp_size": 32, "ep_size": 32, "enable_dp_attention": True, "moe_a2a_backend": "deepep"}
EAGLE = {"speculative_num_steps": 3, "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4}

ENGINES: dict[str, tuple[Role, dict[str, Any]]] = {
    "wide EP prefill, deepep normal": (
        Role.PREFILL,
        {
            **WIDE_EP,
            "deepep_mode": "normal",
            "ep_num_redundant_experts": 32,
            "ep_dispatch_algorithm": "dynamic",
            "eplb_algorithm": "deepseek",
            "init_expert_location": "location.json",
            "moe_dense_tp_size": 1,
            "enable_dp_lm_head": True,
            "enable_two_batch_overlap": True,
            "deepep_config": "deepep.json",
            "disable_radix_cache": True,
            "page_size": 64,
            "chunked_prefill_size": 524288,
            "max_running_requests": 8192,
            "mem_fraction_static": 0.85,
        },
    ),
    "wide EP decode, low latency, EPLB": (
        Role.DECODE,
        {
            **WIDE_EP,
            "deepep_mode": "low_latency",
            "enable_eplb": True,
            "eplb_rebalance_num_iterations": 500,
            "ep_num_redundant_experts": 32,
            "moe_dense_tp_size": 1,
            "enable_dp_lm_head": True,
            "enable_two_batch_overlap": True,
            "cuda_graph_bs_decode": [1, 2, 4, 8, 128],
            "num_reserved_decode_tokens": 512,
            "page_size": 64,
        },
    ),
    "DP attention on one node": (Role.AGGREGATED, {"tp_size": 8, "dp_size": 8, "enable_dp_attention": True}),
    "named as 0.5.22 does": (Role.PREFILL, {"tp_size": 8, "attn_dp_size": 4, "ep_size": 8}),
    "named as 0.5.16 does": (
        Role.DECODE,
        {"cuda_graph_max_bs": 64, "nsa_prefill_backend": "fa3", "enable_gdn_replayssm_spec": True},
    ),
    "tensor and pipeline parallel": (Role.PREFILL, {"tp_size": 8, "pp_size": 2, "pp_max_micro_batch_size": 4}),
    "EAGLE": (
        Role.DECODE,
        {**EAGLE, "speculative_algorithm": "EAGLE", "speculative_draft_model_path": "draft", "tp_size": 4},
    ),
    "MTP": (Role.DECODE, {**EAGLE, "speculative_algorithm": "NEXTN", "speculative_attention_mode": "decode"}),
    "ngram": (Role.AGGREGATED, {"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": 16}),
    "HiCache": (
        Role.PREFILL,
        {
            "enable_hierarchical_cache": True,
            "hicache_ratio": 2.5,
            "hicache_write_policy": "write_through",
            "hicache_io_backend": "direct",
            "hicache_mem_layout": "page_first_direct",
            "hicache_storage_backend": "nixl",
            "hicache_storage_backend_extra_config": '{"plugin": {"posix": {"active": true}}}',
        },
    ),
    "LoRA": (
        Role.DECODE,
        {
            "enable_lora": True,
            "lora_paths": ["a=/adapters/a", "b=/adapters/b"],
            "max_loras_per_batch": 2,
            "max_lora_rank": 64,
            "lora_target_modules": ["q_proj", "o_proj"],
            "lora_strict_loading": True,
        },
    ),
    "LoRA, not strict": (Role.PREFILL, {"enable_lora": True, "lora_paths": {"a": "/a"}, "lora_strict_loading": False}),
    "fp8": (
        Role.PREFILL,
        {"quantization": "fp8", "kv_cache_dtype": "fp8_e4m3", "fp8_gemm_runner_backend": "deep_gemm"},
    ),
    "weights and limits": (
        Role.AGGREGATED,
        {
            "load_format": "dummy",
            "json_model_override_args": '{"num_hidden_layers": 4}',
            "context_length": 131072,
            "chunked_prefill_size": -1,
            "schedule_policy": "lpm",
            "preferred_sampling_params": {"temperature": 0.6},
            "extra_metric_labels": {"deployment": "a b"},
            "random_seed": 0,
            "max_running_requests": None,
            "trust_remote_code": True,
            "disable_cuda_graph": False,
        },
    ),
}


def arguments_of(name: str, device: str = "cuda") -> dict[str, Any]:
    """Complete, as an engine host gets them, in neutral names; of its last member where one node does not hold it."""
    role, engine = ENGINES[name]
    ports = Ports.from_first(20010)
    first = engine_arguments(role, neutral(engine), device=device, model_path="/models/m", host="10.0.0.4", ports=ports)
    if engine.get("tp_size", 1) <= GPUS_OF_A_NODE:
        return first
    return member_arguments(first, member=3, members=4, host="10.0.0.7", ports=ports)
