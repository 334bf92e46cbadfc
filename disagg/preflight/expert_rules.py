"""Mixture of experts: expert parallelism, the all-to-all backend that carries its tokens, and what the two roles need.

Way:   Subject -> [these rules] -> Problems
"""

from __future__ import annotations

from collections.abc import Iterator

from disagg.errors import Problem
from disagg.planning.memory import SPANNING, usual_chunk
from disagg.preflight.rule import pool_rule, rule
from disagg.preflight.subject import PoolView, Subject

# Backend -> (the variable that bounds a rank's tokens in one dispatch, its default in SGLang 0.5.20).
DISPATCH_LIMITS = {
    "deepep": ("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", 128),
    "mooncake": ("SGLANG_MOONCAKE_EP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", 128),
    "nixl": ("SGLANG_NIXL_EP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", 128),
    "pplx": ("SGLANG_PPLX_NUM_MAX_DISPATCH_TOKENS_PER_RANK", 128),
}
NEEDS_DP_ATTENTION = ("flashinfer", "flashinfer_megamoe", "pplx")
WHOLE_PROMPTS = 16_384  # SGLang's max_prefill_tokens: what bounds a step where chunked_prefill_size is -1
GRAPHS_OFF = ("disable_cuda_graph", "disable_decode_cuda_graph")


@rule("sglang eplb/expert_location.py", "leave it out")
def _experts_are_there(subject: Subject) -> Iterator[Problem]:
    """a dense model has nothing to share out; SGLang stops while it builds the model, or pays for nothing"""
    if subject.model is None or subject.model.experts:
        return
    for pool in subject.pools:
        for argument in ("moe_a2a_backend", "ep_size", "enable_eplb", "enable_two_batch_overlap"):
            if pool.get(argument) not in (None, "none", 1, False):
                what = f"is {pool.get(argument)}, and {subject.model.architecture} has no experts"
                yield Problem(pool.at(argument), what)


@pool_rule("sglang #8590, #12012", "take a divisor of tp_size")
def _ep_divides_tp(pool: PoolView) -> Iterator[Problem]:
    """expert groups are cut from the ranks of tp_size; other sizes give ranks without experts, or are overridden"""
    size = pool.count("ep_size")
    if pool.a2a in SPANNING and size not in (1, pool.tp):
        what = f"is {size}, and moe_a2a_backend {pool.a2a} makes it tp_size {pool.tp}"
        yield Problem(pool.at("ep_size"), what, f"say {pool.tp}, or leave it out")
    elif pool.a2a not in SPANNING and pool.tp % size:
        yield Problem(pool.at("ep_size"), f"is {size}, which does not divide tp_size {pool.tp}")


@rule("sglang #6081; vllm #52435", "add redundant experts until they divide")
def _experts_divide(subject: Subject) -> Iterator[Problem]:
    """SGLang stops on an assertion once every node has loaded"""
    for pool in subject.pools:
        if subject.model is None or not subject.model.experts or pool.ep == 1:
            continue
        redundant = pool.count("ep_num_redundant_experts", 0)
        if (subject.model.experts + redundant) % pool.ep:
            more = f" + {redundant} redundant ones" if redundant else ""
            what = f"{subject.model.experts} experts{more} cannot be shared out evenly among {pool.ep} ranks"
            short = -subject.model.experts % pool.ep
            yield Problem(
                pool.at("ep_num_redundant_experts"), what, f"say {short}, or {short} and a multiple of {pool.ep}"
            )


@pool_rule("sglang #9652", "say ep_size, or a moe_a2a_backend, or leave enable_eplb out")
def _eplb(pool: PoolView) -> Iterator[Problem]:
    """there is nothing to balance; SGLang stops on an assertion without a word"""
    if pool.is_on("enable_eplb") and pool.ep == 1:
        yield Problem(pool.at("enable_eplb"), "is on, and ep_size is 1")


@pool_rule("sglang arg_groups/parallel_hook.py handle_eplb_and_dispatch", "say dynamic")
def _dispatch_algorithm(pool: PoolView) -> Iterator[Problem]:
    """each rank would pick another replica of an expert, and partial sums of different experts are added"""
    algorithm = pool.get("ep_dispatch_algorithm")
    if algorithm in ("static", "lp") and pool.a2a == "none":
        what = f"is {algorithm} without a moe_a2a_backend"
        yield Problem(pool.at("ep_dispatch_algorithm"), what, "say dynamic, or a moe_a2a_backend")


@pool_rule("sglang #5524", "say moe_a2a_backend: deepep, or leave it out")
def _two_batch_overlap(pool: PoolView) -> Iterator[Problem]:
    """there is no transfer for the second batch to hide behind; SGLang stops at start"""
    if not pool.is_on("enable_two_batch_overlap"):
        return
    at = pool.at("enable_two_batch_overlap")
    if pool.a2a == "none" and not pool.is_on("enable_dp_attention"):
        yield Problem(at, "is on without a moe_a2a_backend", "say moe_a2a_backend: deepep, or leave it out")
    elif pool.a2a == "deepep_v2":
        yield Problem(at, "is on with moe_a2a_backend deepep_v2", "say moe_a2a_backend: deepep, or leave it out")


@pool_rule(
    "sglang arg_groups/moe_hook.py handle_a2a_moe",
    "say enable_dp_attention: true and dp_size, or another moe_a2a_backend",
)
def _a2a_needs_dp_attention(pool: PoolView) -> Iterator[Problem]:
    """its kernels take their groups from DP attention and fail while they are built"""
    if pool.a2a in NEEDS_DP_ATTENTION and not (pool.is_on("enable_dp_attention") and pool.dp > 1):
        what = f"is {pool.a2a} without enable_dp_attention and a dp_size above 1"
        yield Problem(pool.at("moe_a2a_backend"), what)


@pool_rule("sglang #5014", "say low_latency or auto; if it is meant, say disable_cuda_graph: true too")
def _normal_mode_on_decode(pool: PoolView) -> Iterator[Problem]:
    """DeepEP's normal dispatch cannot be captured: SGLang turns decode's CUDA graphs off, and each step takes several
    times as long"""
    is_normal = pool.a2a == "deepep" and pool.get("deepep_mode") == "normal"
    if pool.role == "decode" and is_normal and not any(map(pool.is_on, GRAPHS_OFF)):
        yield Problem(pool.at("deepep_mode"), "is normal on a decode pool")


@rule("DeepEP #165", "say normal or auto on prefill")
def _low_latency_on_prefill(subject: Subject) -> Iterator[Problem]:
    """the first long prompt stops the engine: 'x.size(0) <= num_max_dispatch_tokens_per_rank'

    Low-latency mode on a pool that reads prompts; an aggregated pool does so, too.
    """
    for pool in subject.of_role("prefill", "aggregated"):
        limit = _dispatch_limit(pool)
        chunk = _chunk(subject, pool) // pool.attention_dp
        if limit and pool.get("deepep_mode") == "low_latency" and chunk > limit[1]:
            what = f"is low_latency, and a rank's chunk of {chunk} tokens is over {limit[0]}={limit[1]}"
            yield Problem(pool.at("deepep_mode"), what)


def _chunk(subject: Subject, pool: PoolView) -> int:
    """Tokens of a chunk, of all ranks together. 0: not set, and SGLang's choice for these GPUs is not known."""
    said = pool.get("chunked_prefill_size")
    if said is not None:
        return pool.count("chunked_prefill_size", pool.count("max_prefill_tokens", WHOLE_PROMPTS))
    gpu = subject.smallest_gpu(pool)
    return usual_chunk(gpu) if gpu else 0


@rule("srt-slurm #44; sglang #29942, #14065; DeepEP #165", "raise the limit, or lower the batch")
def _dispatch_tokens(subject: Subject) -> Iterator[Problem]:
    """the engine stops while it captures graphs, or weeks later in a full batch: 'x.size(0) <=
    num_max_dispatch_tokens_per_rank'"""
    for pool in subject.of_role("decode", "aggregated"):
        limit = _dispatch_limit(pool)
        if limit is None or pool.get("deepep_mode") == "normal":
            continue
        name, tokens = limit
        for argument, requests in _batches_of_a_rank(pool):
            drafts = pool.count("speculative_num_draft_tokens") if pool.get("speculative_algorithm") else 1
            if requests * drafts > tokens:
                each = f" of {drafts} draft tokens each" if drafts > 1 else ""
                what = f"lets a rank decode {requests} requests{each} at once, and {name} is {tokens}"
                would_do = f"say {name}: {requests * drafts} in the pool's env, or lower {argument}"
                yield Problem(pool.at(argument), what, would_do)


def _dispatch_limit(pool: PoolView) -> tuple[str, int] | None:
    if pool.a2a not in DISPATCH_LIMITS:
        return None
    name, default = DISPATCH_LIMITS[pool.a2a]
    said = pool.env.get(name, "")
    return name, int(said) if said.isdecimal() else default


def _batches_of_a_rank(pool: PoolView) -> Iterator[tuple[str, int]]:
    if pool.count("max_running_requests", 0):
        yield "max_running_requests", -(-pool.count("max_running_requests") // pool.attention_dp)
    if not any(map(pool.is_on, GRAPHS_OFF)):
        if pool.count("cuda_graph_max_bs_decode", 0):
            yield "cuda_graph_max_bs_decode", pool.count("cuda_graph_max_bs_decode")
        sizes = pool.get("cuda_graph_bs_decode")
        if isinstance(sizes, list) and sizes and all(isinstance(size, int) for size in sizes):
            yield "cuda_graph_bs_decode", max(sizes)


@pool_rule("sglang #4836", "say enable_dp_attention: true, or leave it out")
def _dense_tp(pool: PoolView) -> Iterator[Problem]:
    """SGLang stops on an assertion, or ignores it and stops at a dense layer too narrow for its quantisation"""
    size = pool.get("moe_dense_tp_size")
    if size not in (None, 1, pool.tp):
        what = f"is {size}; SGLang takes 1 or tp_size, which is {pool.tp}"
        yield Problem(pool.at("moe_dense_tp_size"), what, f"say 1 or {pool.tp}")
    elif size == 1 and pool.tp > 1 and not pool.is_on("enable_dp_attention"):
        yield Problem(pool.at("moe_dense_tp_size"), "is 1 without enable_dp_attention, and SGLang ignores it")
