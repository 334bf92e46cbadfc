"""What a rank needs of its GPU's memory, worked out before anything is loaded.

Way:   an engine's arguments + model facts + GPU kind -> [memory] -> `disagg check`, preflight
Out:   estimates. Weights and KV follow from shapes; what SGLang keeps back for activations and CUDA graphs follows
       its own rule (0.5.20, arg_groups/memory_hook.py) where mem_fraction_static does not say it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg.config.rules import count
from disagg.models.facts import ModelFacts
from disagg.models.parameters import QUANTISED_BYTES, Parts, weight_bytes
from disagg.planning.gpu_kinds import MIB, GpuKind

# Their experts are spread over all ranks, and the shared expert is whole on each (SGLang: _a2a_ep_size).
SPANNING = frozenset({"deepep", "deepep_v2", "flashinfer", "flashinfer_megamoe", "mooncake", "mori", "nixl", "pplx"})
Arguments = Mapping[str, Any]  # complete ones, in the names of 0.5.20


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Of one rank, in bytes. None: the GPU is not known."""

    weights: int
    kv_bytes_per_token: int
    kv_tokens: int | None  # of one data-parallel rank
    kv: int | None
    reserve: int | None  # activations, CUDA graphs
    total: int | None  # of the GPU, or the engine's part of it

    @property
    def free(self) -> int | None:
        """Below 0: it does not fit."""
        if self.total is None or self.reserve is None or self.kv is None:
            return None
        return self.total - self.weights - self.kv - self.reserve


def estimate(arguments: Arguments, facts: ModelFacts, gpu: GpuKind | None, share: float = 1.0) -> MemoryEstimate:
    """`share`: the engine's part of its GPU."""
    weights, per_token = weight_bytes_of_rank(arguments, facts), kv_bytes_of_rank(arguments, facts, 1)
    asked = _count(arguments, "max_total_tokens", 0) or None
    if gpu is None:
        kv = None if asked is None else asked * per_token
        return MemoryEstimate(weights, per_token, asked, kv, None, None)
    total = round(gpu.memory_bytes * min(1.0, share))
    said = arguments.get("mem_fraction_static")
    # An engine that shares its GPU: SGLang takes the fraction of what is free at the start, as of a GPU of that size.
    reserve = round((1 - said) * total) if isinstance(said, int | float) else _kept_back(arguments, facts, gpu)
    room = max(0, total - reserve - weights)
    tokens = room // per_token if per_token else 0
    tokens = tokens if asked is None else min(tokens, asked)
    return MemoryEstimate(weights, per_token, tokens, tokens * per_token, reserve, total)


def weight_bytes_of_rank(arguments: Arguments, facts: ModelFacts) -> int:
    parts = _as_loaded(arguments, facts)
    tp, pp = _count(arguments, "tp_size"), _count(arguments, "pp_size")
    attention_tp = attention_ranks(arguments)
    a2a = arguments.get("moe_a2a_backend") in SPANNING
    redundant = _count(arguments, "ep_num_redundant_experts", 0) / max(1, facts.experts)
    # A share of the embedding is on the first stage, and one on the last: neither is divided by pp.
    of_stage = parts.attention / attention_tp
    of_stage += parts.dense / _count(arguments, "moe_dense_tp_size", tp)
    of_stage += parts.shared / (1 if a2a else tp) + parts.routed * (1 + redundant) / tp + parts.router
    return round(parts.embedding / attention_tp + of_stage / pp)


def kv_bytes_of_rank(arguments: Arguments, facts: ModelFacts, tokens: int) -> int:
    """MLA keeps its latent on every rank; heads are shared out until each rank has one."""
    dtype = arguments.get("kv_cache_dtype") or "auto"
    if dtype == "auto" and arguments.get("dtype") in ("float32", "float"):
        dtype = "float32"
    share = 1.0 if facts.is_mla else max(1.0, facts.kv_heads / attention_ranks(arguments)) / max(1, facts.kv_heads)
    return round(facts.kv_bytes(tokens, str(dtype)) * share / _count(arguments, "pp_size"))


def attention_ranks(arguments: Arguments) -> int:
    """The number of ranks that share the heads of one request."""
    groups = _count(arguments, "dp_size") if arguments.get("enable_dp_attention") else 1
    return max(1, _count(arguments, "tp_size") // groups)


def _as_loaded(arguments: Arguments, facts: ModelFacts) -> Parts:
    """Bytes of the weights as the files hold them, or as the engine is told to load them."""
    dtype, quantisation = str(arguments.get("dtype") or "auto"), str(arguments.get("quantization") or "")
    if facts.quantisation or (dtype in ("auto", facts.dtype) and quantisation not in QUANTISED_BYTES):
        return facts.weights
    return weight_bytes(facts.parameters, facts.dtype if dtype == "auto" else dtype, quantisation, "")


def usual_chunk(gpu: GpuKind) -> int:
    """SGLang's chunked_prefill_size where it is not said."""
    return 4096 if gpu.memory_mib < 60 * 1024 else 16_384 if gpu.memory_mib >= 160 * 1024 else 8192


def usual_graph_batch(tp: int, gpu: GpuKind) -> int:
    """The largest batch that SGLang captures a graph of, where cuda_graph_max_bs_decode is not said."""
    mib = gpu.memory_mib
    if mib < 20 * 1024:
        return 8
    if mib < 35 * 1024:
        return 80 if tp >= 4 else 24
    if mib < 60 * 1024:
        return 160 if tp >= 4 else 32
    return 512 if tp >= 4 or mib >= 160 * 1024 else 256


def _kept_back(arguments: Arguments, facts: ModelFacts, gpu: GpuKind) -> int:
    """SGLang's rule, in MiB: what its graphs and activations are expected to take."""
    tp, dp, mode = _count(arguments, "tp_size"), _count(arguments, "dp_size"), arguments.get("disaggregation_mode")
    small = gpu.memory_mib < 60 * 1024
    batch = _count(arguments, "cuda_graph_max_bs_decode", usual_graph_batch(tp, gpu))
    tokens = _count(arguments, "chunked_prefill_size", usual_chunk(gpu))
    if mode == "decode":
        tokens = _count(arguments, "max_running_requests", batch) * _count(arguments, "speculative_num_draft_tokens")
    kept = 512 + max(tokens, 2048) * 1.5 + tp * _count(arguments, "pp_size") / 8 * 1024
    graphs = not arguments.get("disable_cuda_graph")
    if mode != "decode" and graphs and not arguments.get("disable_prefill_cuda_graph"):
        kept += 1536 if facts.is_mla else 400
    if mode != "prefill" and arguments.get("enable_dp_attention"):
        kept += batch * dp * (4.5 if batch > 300 else 3)
    if mode != "prefill" and graphs:
        kept += batch * 2
    kept = max(kept, 0 if small else 10 * 1024)
    if mode != "prefill" and graphs and arguments.get("moe_a2a_backend") == "deepep":
        kept += 2 * 1024
    return round(kept * MIB)


def _count(arguments: Arguments, name: str, default: int = 1) -> int:
    return count(arguments.get(name), default)
