"""What a prefill and a decode engine must have alike, so that KV can be copied from one to the other as it is.

Way:   Subject -> [these rules] -> Problems on the pool that differs from the first one
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from disagg.errors import Problem
from disagg.planning.kv_pages import real_page_size
from disagg.preflight.rule import rule
from disagg.preflight.subject import PoolView, Subject

SPECULATIVE_ARGUMENTS = (
    "speculative_algorithm",
    "speculative_draft_model_path",
    "speculative_draft_model_revision",
    "speculative_draft_kv_cache_dtype",
)
SAME = "say the same on every prefill and decode pool: KV is copied as it is"


def differences(pools: list[PoolView], *arguments: str) -> Iterator[Problem]:
    for argument in arguments:
        for pool in pools[1:]:
            ours, first = pool.get(argument), pools[0].get(argument)
            if ours != first:
                what = f"is {shown(ours)} but {pools[0].at(argument)} is {shown(first)}"
                yield Problem(pool.at(argument), what)


def shown(value: Any) -> str:
    return "SGLang's default" if value is None else str(value)


@rule("sglang #14439, #14474", SAME)
def _page_size(subject: Subject) -> Iterator[Problem]:
    """the decode scheduler dies on its first request, by 'Page size mismatch'"""
    return differences(subject.split, "page_size")


@rule("sglang #14439", SAME)
def _pages_of_attention_backends(subject: Subject) -> Iterator[Problem]:
    """some attention backends set another page size by themselves, and decode then dies as with two page_size"""
    pools = [pool for pool in subject.split if pool.get("page_size") == subject.split[0].get("page_size")]
    for pool in pools[1:]:
        (ours, backend), (first, because) = real_page_size(pool.arguments), real_page_size(pools[0].arguments)
        if ours != first:
            at = backend or because or "attention_backend"
            what = f"makes pages of {ours} tokens, and that of {pools[0].path} makes pages of {first}"
            would_do = f"say page_size: {max(ours, first)} and the same attention backend on both"
            yield Problem(pool.at(at), what, would_do)


@rule("sglang disaggregation/common/conn.py try_ensure_parallel_info", SAME)
def _kv_cache_dtype(subject: Subject) -> Iterator[Problem]:
    """the decode scheduler dies on its first request, by 'KV cache dtype mismatch'"""
    return differences(subject.split, "kv_cache_dtype")


@rule("seen here with float32 and bfloat16, sglang 0.5.20", "say the same dtype, or the same kv_cache_dtype")
def _dtype(subject: Subject) -> Iterator[Problem]:
    """KV follows dtype, and SGLang compares only what kv_cache_dtype says: the decode leg hangs in its transfer, or
    reads numbers of another kind"""
    follows = [pool for pool in subject.split if pool.get("kv_cache_dtype") in (None, "auto")]
    return differences(follows, "dtype")


@rule("sglang #37838", SAME)
def _kv_layout(subject: Subject) -> Iterator[Problem]:
    """bytes land where the other layout reads something else; 0.5.20 does not compare layouts, answers are garbage"""
    return differences(subject.split, "enable_page_major_kv_layout", "dsv4_attn_backend", "enable_hisparse")


@rule("sglang #10059, #23918", "say the same draft on every prefill and decode pool")
def _speculative(subject: Subject) -> Iterator[Problem]:
    """the draft model's KV and hidden states travel too; a side without them sizes its buffers differently, and
    transfers fail or drafts are wrong"""
    return differences(subject.split, *SPECULATIVE_ARGUMENTS)


@rule("dynamo #4769, #8945", "say the same on every prefill and decode pool")
def _lora(subject: Subject) -> Iterator[Problem]:
    """both legs of a request read the same adapter, and each would make other weights of it: its first token is one
    model's, the others another's"""
    return differences(subject.split, "experts_shared_outer_loras")
