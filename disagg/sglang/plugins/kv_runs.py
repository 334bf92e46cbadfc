"""SGLang's paged allocator, taught to keep runs together: a KV transfer then needs fewer, larger descriptors.

Way:   transfer.py, in schedulers of disaggregated engines -> SGLang's alloc and alloc_extend take the front of its
       list of free pages -> [in_order] puts the best run there first
Why:   NIXL posts a descriptor for each run of pages that is adjacent on both sides, at 2.6 µs on an H200. SGLang takes
       free pages in the order of their addresses, holes and all; benchmarks/fragmentation.py has the difference
Cost:  some twenty small kernels for a prompt, or a chunk of one; none in decode steps. The host waits for nothing: to
       read the list it would have to wait for the GPU, which SGLang's scheduler avoids between two batches
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disagg.sglang.plugins.instead import instead_of

if TYPE_CHECKING:
    from torch import Tensor


def in_order(free: Tensor, count: int) -> Tensor:
    """`free` (int64) with the shortest run that holds `count` first; without one, the longest runs, until they do.

    The other runs follow from the shortest on: single pages, as decode steps take them, then come out of scraps.
    """
    import torch

    size = len(free)
    if not size:
        return free
    free = free.sort().values
    index = torch.arange(size, device=free.device)
    begins = torch.ones(size, dtype=torch.bool, device=free.device)
    torch.ne(free[1:] - free[:-1], 1, out=begins[1:])
    run = begins.cumsum(0) - 1  # of each page, as all that follows
    length = torch.zeros_like(run).scatter_add_(0, run, torch.ones_like(run))[run]

    none = size + 1
    shortest = torch.where(length >= count, length, none).amin()
    chosen = torch.where(length == shortest, run, none).amin()  # the first of those as short
    if_one_holds_it = torch.where(run == chosen, 0, length)

    place = torch.empty_like(index)
    place[(-length).argsort(stable=True)] = index  # if the longest came first
    within = index - torch.where(begins, index, 0).cummax(0).values
    if_none_does = torch.where(place - within < count, -length, length)

    key = torch.where(shortest < none, if_one_holds_it, if_none_does)
    return free[key.argsort(stable=True)]


def activate() -> None:
    from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator as Allocator

    @instead_of(Allocator)
    def alloc(self: Any, need_size: int) -> Any:
        _prepare(self, need_size // self.page_size)
        return alloc.real(self, need_size)

    @instead_of(Allocator)
    def alloc_extend(
        self: Any, prefix_lens: Any, prefix_lens_cpu: Any, seq_lens: Any, seq_lens_cpu: Any, *args: Any, **kwargs: Any
    ) -> Any:
        whole = self.page_size - 1
        pages = (seq_lens_cpu + whole) // self.page_size - (prefix_lens_cpu + whole) // self.page_size
        _prepare(self, int(pages.sum()))
        return alloc_extend.real(self, prefix_lens, prefix_lens_cpu, seq_lens, seq_lens_cpu, *args, **kwargs)


def _prepare(allocator: Any, count: int) -> None:
    if not allocator.need_sort or count < 2:  # need_sort: SGLang's word for a disaggregated engine
        return
    allocator.merge_and_sort_free()
    allocator.free_pages = in_order(allocator.free_pages, count)
