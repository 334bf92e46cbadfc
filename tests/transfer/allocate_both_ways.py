"""A program for test_runs_are_kept_together: the same random requests to SGLang's paged allocator, both ways."""

from __future__ import annotations

import json
import random
from typing import Any

import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

from disagg.sglang.plugins import cpu_bridges as bridges
from disagg.sglang.plugins import kv_runs as runs

PAGE = 16
POOL_PAGES = 256


def serve() -> dict[str, Any]:
    allocator = PagedTokenToKVPoolAllocator(PAGE * POOL_PAGES, PAGE, torch.float32, "cpu", None, need_sort=True)
    chance = random.Random(7)
    live: list[torch.Tensor] = []
    answers: list[tuple[int | None, int]] = []
    broken = 0
    for _ in range(400):
        what = chance.random()
        if what < 0.45:
            tokens = chance.randint(1, 40 * PAGE)
            got = extend(allocator, 0, tokens, -1)
            if got is not None:
                pages = got[::PAGE] // PAGE
                broken += int((torch.diff(pages) != 1).sum())
                live.append(got)
        elif what < 0.7 and live:
            at = chance.randrange(len(live))
            tokens = len(live[at])
            got = extend(allocator, tokens, tokens + chance.randint(1, 3 * PAGE), int(live[at][-1]))
            if got is not None:
                live[at] = torch.cat((live[at], got))
        elif live:
            got = None
            allocator.free(live.pop(chance.randrange(len(live))))
        else:
            got = None
        answers.append((None if got is None else len(got), allocator.available_size()))
        taken = torch.cat(live) if live else torch.empty(0, dtype=torch.int64)
        assert len(torch.unique(taken)) == len(taken)
        for sequence in live:  # a page belongs to one sequence, and its tokens follow one another in it
            assert torch.equal(sequence % PAGE, torch.arange(len(sequence)) % PAGE)
    return {"answers": answers, "runs": broken}


def extend(allocator: Any, prefix: int, total: int, last: int) -> torch.Tensor | None:
    ours = [torch.tensor([number]) for number in (prefix, prefix, total, total, last)]
    got: torch.Tensor | None = allocator.alloc_extend(*ours, total - prefix)
    return got


bridges._paged_allocator_in_torch()
plain = serve()
runs.activate()
print(json.dumps([plain, serve()]))
