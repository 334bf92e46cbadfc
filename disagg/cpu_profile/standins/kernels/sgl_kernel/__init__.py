"""Stands for SGLang's kernel package where there is no GPU for its kernels.

Way:   first on PYTHONPATH where `disagg.cpu_profile.paths` says so; SGLang imports it in every process of an engine
Has:   the one kernel that SGLang's CPU path calls, in torch; every other name is a function that refuses to be called
"""

from __future__ import annotations

from typing import Any, NoReturn

__version__ = "0.0.0+cpu.standin"


def assign_req_to_token_pool_cpu(
    req_pool_indices: Any, req_to_token: Any, start_offset: Any, end_offset: Any, out_cache_loc: Any, pool_len: int
) -> None:
    """Writes each request's new KV slots into its row, at [start, end); `out_cache_loc` holds them in order."""
    lengths = (end_offset - start_offset).tolist()
    rows, starts = req_pool_indices.tolist(), start_offset.tolist()
    slots_by_request = out_cache_loc[: sum(lengths)].to(req_to_token.dtype).split(lengths)
    for row, start, slots in zip(rows, starts, slots_by_request, strict=True):
        req_to_token[row, start : start + len(slots)] = slots


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} is a GPU kernel, and this process runs on the CPU stand-in")

    absent.__name__ = name
    return absent
