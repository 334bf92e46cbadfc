"""SGLang plugin for engines without a GPU: the few places where SGLang or NIXL take a GPU for granted.

Way:   entry point of the group `sglang.srt.plugins`; SGLang runs it in the host and in every scheduler
Owns:  nothing; each function bridges one gap and can go when upstream has closed it
Only:  where SGLANG_USE_CPU_ENGINE=1 and the process belongs to an engine of ours
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from disagg.host_spec import LIFE_VARIABLE
from disagg.sglang.plugins import extend_attention
from disagg.sglang.plugins.instead import instead_of

CONTROLLER_WAIT_MS = 1000  # a request ends the wait
WAITING_POLL_MS = 2  # each leg of a request is later by that at most
IDLE_POLL_MS = 5  # DP attention: a rank that sleeps longer makes every step of the others wait


def activate() -> None:
    if os.environ.get("SGLANG_USE_CPU_ENGINE") != "1" or LIFE_VARIABLE not in os.environ:
        return
    _kv_pool_in_host_memory()
    _no_pinned_memory()
    _patient_dp_controller()
    if scheduler := sys.modules.get("sglang.srt.managers.scheduler"):
        _patient_waits(scheduler.Scheduler)
        _mla_on_torch_native()
        _paged_allocator_in_torch()
        _experts_of_other_ranks()
        _dp_attention()
        extend_attention.activate()


def _kv_pool_in_host_memory() -> None:
    """NIXL agents take "VRAM" for DRAM: that is where the KV pool lies."""
    from nixl._api import nixl_agent

    @instead_of(nixl_agent)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        __init__.real(self, *args, **kwargs)
        self.nixl_mems["VRAM"] = self.nixl_mems["DRAM"]


def _no_pinned_memory() -> None:
    """LoRA asks for pinned memory, which CPU torch refuses."""
    import torch

    def unpinned(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return call

    for name in ("tensor", "empty", "zeros", "ones", "full", "empty_like", "zeros_like"):
        setattr(torch, name, unpinned(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self


def _patient_dp_controller() -> None:
    """It asks for requests without a pause, on a whole core. Forked from the host, it has what is set here."""
    from sglang.srt.managers import data_parallel_controller as controller

    @instead_of(controller)
    def sock_recv(socket: Any, flags: int = 0) -> Any:
        socket.poll(CONTROLLER_WAIT_MS)
        return sock_recv.real(socket, flags=flags)


def _patient_waits(scheduler_class: Any) -> None:
    """One whose requests all wait for the other engine asks for news without a pause: decode took a core from the
    prefill engine that it waited for."""

    @instead_of(scheduler_class)
    def on_idle(self: Any) -> None:
        on_idle.real(self)
        if self.idle_sleeper is not None and not self.is_fully_idle():
            self.idle_sleeper.poller.poll(WAITING_POLL_MS)


def _mla_on_torch_native() -> None:
    """DeepSeek's MLA: prefill takes the absorbed path that decode takes."""
    from sglang.srt.models.deepseek_common import attention_backend_handler as handler

    handler.AttentionBackendRegistry.register("torch_native", handler._dispatch_mla_subtype)


class _TorchKernel:
    """Stands where a Triton kernel is called as kernel[grid](*arguments)."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __getitem__(self, _grid: Any) -> Any:
        return self._function


def _paged_allocator_in_torch() -> None:
    """page_size > 1: slots for new tokens, first in each request's last page, then in fresh pages.

    With too few free pages `out` stays as it is: the allocator compares the counts afterwards and refuses.
    """
    import torch
    from sglang.srt.mem_cache.allocator import paged

    def extend(prefix_lens: Any, seq_lens: Any, last_loc: Any, free_pages: Any, out: Any, _bs: int, page: int) -> None:
        pages_taken = written = 0
        for prefix, length, last in zip(prefix_lens.tolist(), seq_lens.tolist(), last_loc.tolist(), strict=True):
            count = length - prefix
            in_last_page = min(count, -prefix % page)
            out[written : written + in_last_page] = torch.arange(last + 1, last + 1 + in_last_page)
            pages = -(-(count - in_last_page) // page)
            if pages_taken + pages > len(free_pages):
                return
            fresh = free_pages[pages_taken : pages_taken + pages, None] * page + torch.arange(page)
            out[written + in_last_page : written + count] = fresh.reshape(-1)[: count - in_last_page]
            pages_taken, written = pages_taken + pages, written + count

    def decode(seq_lens: Any, last_loc: Any, free_pages: Any, out: Any, _bs: int, page: int) -> None:
        opens_a_page = (seq_lens - 1) % page == 0
        count = int(opens_a_page.sum())
        if count > len(free_pages):
            return
        out.copy_(last_loc + 1)
        out[opens_a_page] = free_pages[:count] * page

    paged.alloc_extend_kernel, paged.alloc_decode_kernel = _TorchKernel(extend), _TorchKernel(decode)


def _experts_of_other_ranks() -> None:
    """ep_size > 1: another rank's expert has id -1, which the torch MoE would index with; a rank may have no token."""
    from sglang.srt.layers.moe import fused_moe_native

    @instead_of(fused_moe_native)
    def moe_forward_native(layer: Any, x: Any, topk: Any, config: Any) -> Any:
        forward = moe_forward_native.real
        if x.shape[0] == 0:
            return x
        elsewhere = topk.topk_ids < 0
        if not elsewhere.any():
            return forward(layer, x, topk, config)
        weights, ids = topk.topk_weights.masked_fill(elsewhere, 0), topk.topk_ids.masked_fill(elsewhere, 0)
        slots = (
            topk._replace(topk_weights=weights[:, k : k + 1], topk_ids=ids[:, k : k + 1]) for k in range(ids.shape[1])
        )
        return sum(forward(layer, x, slot, config) for slot in slots)


def _dp_attention() -> None:
    """The padding value torch_native lacks, the exchange of logits between ranks whose batches are of one size (SGLang
    registers it for CUDA alone), and idle ranks that wake in time for the others' steps."""
    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.layers.dp_attention import is_dp_attention_enabled
    from sglang.srt.managers.scheduler_components.idle_sleeper import IdleSleeper

    TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value = lambda self: 1
    GroupCoordinator.all_to_all_single = GroupCoordinator._all_to_all_single

    @instead_of(IdleSleeper)
    def maybe_sleep(self: Any) -> None:
        if is_dp_attention_enabled():
            self.poller.poll(IDLE_POLL_MS)
        else:
            maybe_sleep.real(self)
