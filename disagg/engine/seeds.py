"""SGLang plugin: a request's `seed` is honoured under SGLang's pytorch sampling, also beside requests without one.

Way:   entry point of the group `sglang.srt.plugins`, in every scheduler
Why:   SGLang 0.5.16 to 0.5.23 look at a request's sampling_seed only under enable_deterministic_inference, which gives
       every request without a seed the same one, excludes min_p, and wants particular attention kernels
How:   the batch always carries a seed a row (UNSEEDED where there is none). The usual sampler chooses; then the rows
       with a seed choose again by Gumbel-max over the same filtered weights, with noise from hash(seed, position,
       rank of the token). A request's choice depends on its own row alone, so batching and disaggregation keep it
"""

from __future__ import annotations

import os
import sys
from typing import Any

from disagg.engine.spec import LIFE_VARIABLE

UNSEEDED = -1


def activate() -> None:
    if LIFE_VARIABLE not in os.environ or "sglang.srt.managers.scheduler" not in sys.modules:
        return
    import torch
    from sglang.srt.layers import sampler
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    from_batch = SamplingBatchInfo.from_schedule_batch.__func__
    filtered_sampling = sampler.top_k_top_p_min_p_sampling_from_probs_torch
    plain_sampling = sampler.sampling_from_probs_torch

    def from_schedule_batch(cls: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        info = from_batch(cls, batch, *args, **kwargs)
        # Not None: deterministic inference is on, and SGLang sees to it. Flashinfer's samplers take no seeds.
        if info.sampling_seed is None and _sampling_backend() == "pytorch":
            given = [r.sampling_params.sampling_seed for r in batch.reqs]
            seeds = [UNSEEDED if seed is None else seed for seed in given]
            info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=info.device)
        return info

    def seeded_rows(seeds: Any) -> Any:
        return None if seeds is None else (seeds != UNSEEDED).nonzero().view(-1)

    def choose(weights: Any, seeds: Any, positions: Any) -> Any:
        """Index of the chosen column of each row; weights need not sum to 1."""
        columns = torch.arange(weights.shape[1], device=weights.device)
        noise = _uniform(seeds[:, None], positions[:, None].to(torch.int64), columns[None, :])
        return torch.argmax(weights.double().log() - torch.log(-torch.log(noise)), dim=1, keepdim=True)

    def top_k_top_p_min_p(
        probs: Any, top_ks: Any, top_ps: Any, min_ps: Any, need_min_p: bool, seeds: Any, positions: Any, **kwargs: Any
    ) -> Any:
        rows = seeded_rows(seeds)
        if rows is None or len(rows) == 0:
            return filtered_sampling(probs, top_ks, top_ps, min_ps, need_min_p, None, positions, **kwargs)
        kwargs["return_filtered_probs"], wants_all = True, kwargs.get("return_filtered_probs", False)
        ids, weights, order, selected = filtered_sampling(
            probs, top_ks, top_ps, min_ps, need_min_p, None, positions, **kwargs
        )
        column = choose(weights[rows], seeds[rows], positions[rows])
        ids[rows] = torch.gather(order[rows], 1, column).view(-1).to(ids.dtype)
        selected[rows] = torch.gather(weights[rows], 1, column).view(-1)
        return (ids, weights, order, selected) if wants_all else ids

    def sampling_from_probs(probs: Any, sampling_seed: Any = None, positions: Any = None) -> Any:
        rows = seeded_rows(sampling_seed)
        ids = plain_sampling(probs, None, positions)
        if rows is not None and len(rows):
            order = probs[rows].argsort(dim=-1, descending=True, stable=True)
            column = choose(torch.gather(probs[rows], 1, order), sampling_seed[rows], positions[rows])
            ids[rows] = torch.gather(order, 1, column).view(-1).to(ids.dtype)
        return ids

    SamplingBatchInfo.from_schedule_batch = classmethod(from_schedule_batch)
    sampler.top_k_top_p_min_p_sampling_from_probs_torch = top_k_top_p_min_p
    sampler.sampling_from_probs_torch = sampling_from_probs


def _sampling_backend() -> str:
    try:
        from sglang.srt.runtime_context import get_exec
    except ImportError:  # 0.5.16
        from sglang.srt.server_args import get_global_server_args

        return str(get_global_server_args().sampling_backend)
    return str(get_exec().kernel.sampling_backend)


def _uniform(seed: Any, position: Any, column: Any) -> Any:
    """Numbers in (0, 1), a function of its three arguments (broadcast): splitmix64's finaliser over their mix."""
    mixed = seed * -7046029254386353131 + position * -4658895280553007687 + column * -7723592293110705685
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ _shift_right(mixed, shift)) * factor
    mixed = mixed ^ _shift_right(mixed, 31)
    return (_shift_right(mixed, 11).double() + 0.5) * 2.0**-53


def _shift_right(value: Any, bits: int) -> Any:
    """Logical, where torch's >> on int64 is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
