"""The page size of an engine's KV: what its pool asks for, and what some attention backends make of it.

Way:   an engine's arguments -> [real_page_size] -> preflight, cost of a transfer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disagg.config.rules import count

# Attention backend -> (page sizes it can do, the one SGLang takes in place of any other, for which phases).
_DECODE = ("attention_backend", "decode_attention_backend")
_ANY = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
PAGES_OF_BACKENDS: dict[str, tuple[tuple[int, ...], int, tuple[str, ...]]] = {
    "flashmla": ((64,), 64, _DECODE),
    "trtllm_mla": ((32, 64), 64, _DECODE),
    "tokenspeed_mla": ((32, 64), 64, _DECODE),
    "cutedsl_mla": ((32, 64), 64, _ANY),
    "trtllm_mha": ((16, 32, 64, 128), 64, _ANY),
    "hpc_ops": ((64,), 64, _ANY),
}


def real_page_size(arguments: Mapping[str, Any]) -> tuple[int, str]:
    """(the page size SGLang will use, the argument that decided it). A page_size that is not a count reads as 1."""
    size, because = count(arguments.get("page_size")), ""
    for backend, (sizes, instead, names) in PAGES_OF_BACKENDS.items():
        for name in names:
            if arguments.get(name) == backend and size not in sizes:
                size, because = instead, name
    return size, because
