"""How an engine is cut into ranks, and which cuts of prefill and decode can talk to each other.

Way:   Subject -> [these rules] -> Problems
"""

from __future__ import annotations

from collections.abc import Iterator

from disagg.errors import Problem
from disagg.preflight.rule import pair_rule, pool_rule, rule
from disagg.preflight.subject import PoolView, Subject

CONN = "sglang disaggregation/common/conn.py"


@pool_rule("sglang #29725, #29733", "say enable_dp_attention: true, or use replicas")
def _plain_data_parallel(pool: PoolView) -> Iterator[Problem]:
    """the sender takes every rank for rank 0 and refuses the others' rooms: of N ranks all but 1/N of the requests"""
    if pool.dp > 1 and not pool.is_on("enable_dp_attention"):
        yield Problem(pool.at("dp_size"), f"is {pool.dp} without enable_dp_attention")


@pool_rule("sglang arg_groups/parallel_hook.py handle_data_parallelism", "make tp_size a multiple of dp_size")
def _dp_divides_tp(pool: PoolView) -> Iterator[Problem]:
    """attention groups are cut from the ranks of tp_size; SGLang stops on an assertion without a word"""
    parts = pool.dp * pool.cp
    if pool.is_on("enable_dp_attention") and pool.tp % parts:
        among = f"{parts} (dp_size * attn_cp_size)" if pool.cp > 1 else f"dp_size {pool.dp}"
        yield Problem(pool.at("dp_size"), f"tp_size {pool.tp} cannot be shared out evenly among {among}")


@pair_rule(f"{CONN} _resolve_rank_mapping", "make one a multiple of the other")
def _tp_ratio(prefill: PoolView, decode: PoolView) -> Iterator[Problem]:
    """a decode rank looks for a prefill rank that does not exist, and its requests end at the bootstrap timeout"""
    ours, theirs = decode.attention_tp, prefill.attention_tp
    if max(ours, theirs) % min(ours, theirs):
        what = f"cuts heads over {_ranks(ours)}, and {prefill.path} over {theirs}"
        yield Problem(decode.at("tp_size"), what)


@rule("llm-d #2433, #2442; sglang #31295", "say the same tp_size on prefill and decode")
def _hybrid_tp(subject: Subject) -> Iterator[Problem]:
    """sliding-window and Mamba states cannot be cut anew on the way: the transfer worker raises, the client hangs"""
    model = subject.model
    if model is None or model.is_mla or not (model.sliding_layers or model.linear_layers):
        return
    for prefill, decode in subject.pairs():
        ours, theirs = decode.attention_tp, prefill.attention_tp
        if ours != theirs and not max(ours, theirs) % min(ours, theirs):
            what = f"cuts heads over {_ranks(ours)}, {prefill.path} over {theirs}, and {model.architecture} has layers "
            what += "with another kind of cache"
            yield Problem(decode.at("tp_size"), what, f"say tp_size (over dp_size) the same as {prefill.path}")


def _ranks(count: int) -> str:
    return f"{count} attention rank{'' if count == 1 else 's'}"


@pair_rule("sglang #14265", "say 1, or prefill's pp_size")
def _pp(prefill: PoolView, decode: PoolView) -> Iterator[Problem]:
    """the decode scheduler dies on its first request, by an assertion"""
    if decode.pp not in (1, prefill.pp):
        what = f"is {decode.pp} but {prefill.at('pp_size')} is {prefill.pp}"
        yield Problem(decode.at("pp_size"), what, f"say 1{'' if prefill.pp == 1 else f' or {prefill.pp}'}")


@pool_rule(f"{CONN} _resolve_rank_mapping", "leave attn_cp_size out on decode")
def _decode_cp(pool: PoolView) -> Iterator[Problem]:
    """the decode scheduler dies on its first request, by an assertion"""
    if pool.role == "decode" and pool.cp > 1:
        yield Problem(pool.at("attn_cp_size"), f"is {pool.cp} on a decode pool", "leave it out")


@rule(f"{CONN} try_ensure_parallel_info", "leave dcp_size out")
def _decode_dcp(subject: Subject) -> Iterator[Problem]:
    """the decode scheduler dies on its first request: decode context parallelism takes an MLA cache and a prefill
    without context parallelism"""
    for prefill, decode in subject.pairs():
        if decode.count("dcp_size") > 1:
            if subject.model is not None and not subject.model.is_mla:
                what = f"is {decode.count('dcp_size')}, and {subject.model.architecture} has no latent (MLA) cache"
                yield Problem(decode.at("dcp_size"), what, "leave it out")
            if prefill.cp > 1:
                what = f"is {decode.count('dcp_size')} while {prefill.at('attn_cp_size')} is {prefill.cp}"
                yield Problem(decode.at("dcp_size"), what, f"leave {prefill.at('attn_cp_size')} out")


@pool_rule("sglang #37154", "take one of the two out")
def _pp_with_speculative(pool: PoolView) -> Iterator[Problem]:
    """SGLang stops on an assertion after minutes of start-up, on every node"""
    if pool.pp > 1 and pool.get("speculative_algorithm"):
        what = f"is {pool.pp} beside speculative_algorithm {pool.get('speculative_algorithm')}"
        yield Problem(pool.at("pp_size"), what)


@rule("sglang #3436", "take a tp_size that divides the heads")
def _heads(subject: Subject) -> Iterator[Problem]:
    """each rank gets whole heads; the model's first layer stops on an assertion while it is built

    On a CPU SGLang pads the heads to the next multiple: seen with 9 of them on 2 ranks.
    """
    for pool in subject.pools:
        model, ranks = subject.model, pool.attention_tp
        if subject.device != "cpu" and model is not None and model.heads % ranks:
            what = f"cuts {model.heads} attention heads over {ranks} ranks"
            good = [count for count in range(1, model.heads + 1) if model.heads % count == 0 and count <= pool.tp]
            would_do = f"make tp_size over dp_size one of {', '.join(map(str, good[-4:]))}"
            yield Problem(pool.at("tp_size"), what, would_do)


@rule("sglang models/llama.py LlamaAttention", "take a tp_size that divides the KV heads, or a multiple of them")
def _kv_heads(subject: Subject) -> Iterator[Problem]:
    """KV heads are shared out or copied whole; the model's first layer stops on an assertion while it is built"""
    for pool in subject.pools:
        model, ranks = subject.model, pool.attention_tp
        if subject.device == "cpu" or model is None or model.is_mla or model.heads % ranks:
            continue
        if max(model.kv_heads, ranks) % min(model.kv_heads, ranks):
            what = f"cuts {model.kv_heads} KV heads over {ranks} ranks"
            yield Problem(pool.at("tp_size"), what, f"take a multiple or a divisor of {model.kv_heads}")


@pool_rule("sglang arg_groups/overrides.py _dp_lm_head_validation", "say enable_dp_attention: true, or leave it out")
def _dp_lm_head(pool: PoolView) -> Iterator[Problem]:
    """SGLang leaves the head as it is without a word, or stops on an assertion where dp_size is above 1"""
    if pool.is_on("enable_dp_lm_head") and not pool.is_on("enable_dp_attention"):
        yield Problem(pool.at("enable_dp_lm_head"), "is on without enable_dp_attention")


def tp_warnings(subject: Subject) -> Iterator[str]:
    """Warns of combinations that work today but that SGLang does not promise to support."""
    if subject.model is None or subject.model.is_mla:
        return
    for prefill, decode in subject.pairs():
        ours, theirs = decode.attention_tp, prefill.attention_tp
        if ours != theirs and not max(ours, theirs) % min(ours, theirs):
            yield (
                f"{decode.at('tp_size')}: {_ranks(ours)} here and {theirs} in {prefill.path}; for models without MLA "
                "SGLang calls the performance of that not guaranteed (sglang #15674: crashes under load in 0.5.6)"
            )
