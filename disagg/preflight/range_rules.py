"""Numbers that no engine can have: fractions that are none, sizes of nothing.

Way:   Subject -> [these rules] -> Problems
In:    numbers. disagg/config/engine_arguments.py checks types, disagg/config/rules.py counts of ranks
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

from disagg.errors import Problem
from disagg.preflight.rule import pool_rule
from disagg.preflight.subject import PoolView

FRACTION = "mem_fraction_static"
SIZES = (
    "page_size",
    "context_length",
    "max_total_tokens",
    "max_running_requests",
    "max_prefill_tokens",
    "cuda_graph_max_bs_decode",
    "ep_size",
    "attn_cp_size",
    "dcp_size",
)
OFF = -1  # of chunked_prefill_size
TOKENS_MAX = 1 << 40


@pool_rule("sglang arg_groups/memory_hook.py", "say another, or leave it out")
def _ranges(pool: PoolView) -> Iterator[Problem]:
    """SGLang takes most of them, and stops after loading, on an assertion or for want of memory, or serves nothing"""
    share = pool.get(FRACTION)
    if _is_number(share) and not 0 < share < 1:
        yield Problem(pool.at(FRACTION), f"is {share!r:.40}, no fraction between 0 and 1", "say 0.85, for example")
    for argument in SIZES:
        size = pool.get(argument)
        if _is_number(size) and not 1 <= size <= TOKENS_MAX:
            yield Problem(pool.at(argument), f"is {size!r:.40}, and must be from 1 to {TOKENS_MAX}")
    chunk = pool.get("chunked_prefill_size")
    if _is_number(chunk) and chunk != OFF and not 1 <= chunk <= TOKENS_MAX:
        what = f"is {chunk!r:.40}, and must be {OFF}, which is off, or from 1 to {TOKENS_MAX}"
        yield Problem(pool.at("chunked_prefill_size"), what)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
