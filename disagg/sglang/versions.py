"""One neutral spelling of SGLang's arguments (that of 0.5.20), and each supported release's own.

Way:   YAML -> [neutral] -> rules, plan -> [emit] -> sglang.Engine(**arguments) of the release that runs
In:    an engine's arguments; `neutral` takes the names of any supported release, `emit` the neutral ones
Out:   a new dict. Names that no release has renamed pass as they are; disagg/config/engine_arguments.py checks whether
       a release has them
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disagg.sglang.releases import number_of

# Retired name -> its neutral one, value unchanged. Command lines published for 0.5.16 to 0.5.19 still say most of them.
RENAMED = {
    "enable_gdn_replayssm_spec": "enable_linear_replayssm_spec",
    "nsa_prefill_backend": "dsa_prefill_backend",
    "nsa_decode_backend": "dsa_decode_backend",
    "cuda_graph_max_bs": "cuda_graph_max_bs_decode",
    "cuda_graph_bs": "cuda_graph_bs_decode",
    "piecewise_cuda_graph_max_tokens": "cuda_graph_max_bs_prefill",
    "piecewise_cuda_graph_tokens": "cuda_graph_bs_prefill",
    "piecewise_cuda_graph_compiler": "cuda_graph_tc_compiler",
    "speculative_dflash_draft_window_size": "speculative_draft_window_size",
    "mamba_scheduler_strategy": "mamba_radix_cache_strategy",
    "stream_output": "incremental_streaming_output",
}
_CP_MODE = "say cp_strategy: zigzag for in-seq-split, interleave for round-robin-split"
_CP_INTERLEAVED = "say enable_prefill_cp: true, and cp_strategy: interleave for round-robin-split"
# Retired name -> what says the same now; not folded, because the value changes with the name.
REPLACED = {
    "enable_breakable_cuda_graph": "say cuda_graph_backend_prefill: breakable",
    "disable_piecewise_cuda_graph": "say cuda_graph_backend_prefill: disabled",
    "enforce_piecewise_cuda_graph": "say cuda_graph_backend_prefill: tc_piecewise",
    "enable_prefill_context_parallel": "say enable_prefill_cp: true, and cp_strategy: zigzag for in-seq-split",
    "prefill_cp_mode": _CP_MODE,
    "enable_dsa_prefill_context_parallel": _CP_INTERLEAVED,
    "dsa_prefill_cp_mode": _CP_MODE,
    "enable_nsa_prefill_context_parallel": _CP_INTERLEAVED,
    "nsa_prefill_cp_mode": _CP_MODE,
    "enable_expert_distribution_metrics": "say expert_balancedness_report_mode: both (from sglang 0.5.18 on)",
    "keep_mm_feature_on_device": "say mm_feature_transport: cuda_ipc",
    "torchao_config": "say quantization",
    "monokernel_backend": "say enable_amd_monokernel: true (from sglang 0.5.23 on)",
    "collect_tokens_histogram": "leave it out: enable_metrics collects them",
    "prefill_round_robin_balance": "leave it out: the frontend picks every rank",
}
ATTENTION_DP_SINCE = (0, 5, 22)  # before: enable_dp_attention, with dp_size counting the attention groups
LINEAR_REPLAY_SINCE = (0, 5, 17)
# Before, there is no choice: it is what `cpu_tensor` says now, which decode engines on a CPU get (decode/role.py).
RETRACTION_BACKUP_SINCE = (0, 5, 18)


def neutral_name(name: str) -> str:
    return RENAMED.get(name, name)


def neutral(arguments: Mapping[Any, Any]) -> dict[Any, Any]:
    """`arguments` in the names of 0.5.20. An attn_dp_size that cannot be folded stays, for rules.py to refuse."""
    said = {neutral_name(name): value for name, value in arguments.items()}
    groups = said.get("attn_dp_size")
    counts = isinstance(groups, int) and not isinstance(groups, bool) and groups >= 1
    if counts and "enable_dp_attention" not in said and said.get("dp_size", 1) == 1:
        del said["attn_dp_size"]
        if groups != 1:
            said |= {"dp_size": groups, "enable_dp_attention": True}
    return said


def emit(arguments: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The complete neutral `arguments` of an engine as keyword arguments of that SGLang's Engine."""
    said, number = dict(arguments), number_of(version)
    if number >= ATTENTION_DP_SINCE and said.pop("enable_dp_attention", False):
        said |= {"attn_dp_size": said.get("dp_size", 1), "dp_size": 1}
    if number < RETRACTION_BACKUP_SINCE and said.get("disaggregation_decode_retraction_backup") == "cpu_tensor":
        del said["disaggregation_decode_retraction_backup"]
    return {spelling(name, version): value for name, value in said.items()}


def spelling(name: str, version: str) -> str:
    """What the release calls the neutral argument `name`."""
    if name == "enable_linear_replayssm_spec" and number_of(version) < LINEAR_REPLAY_SINCE:
        return "enable_gdn_replayssm_spec"
    return name
