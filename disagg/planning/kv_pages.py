"""The page size of an engine's KV: what its pool asks for, and what some attention backends make of it.

Way:   an engine's arguments -> [real_page_size] -> preflight, cost of a transfer; of all engines -> [block_tokens]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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


BLOCK_TOKENS_MIN = 64  # a rank of a million tokens then has some 16,000 KV blocks


def block_tokens(engines: Iterable[Mapping[str, Any]]) -> int:
    """Tokens of a KV block, in which routing counts what is cached: the least multiple of all page sizes that is
    BLOCK_TOKENS_MIN at least. `engines`: their arguments."""
    pages = math.lcm(*(real_page_size(arguments)[0] for arguments in engines))
    return -(-BLOCK_TOKENS_MIN // pages) * pages
