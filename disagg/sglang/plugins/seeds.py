"""SGLang plugin: a request's `seed` is honoured under SGLang's pytorch sampling, also beside requests without one.

Way:   entry point of the group `sglang.srt.plugins`, in every scheduler
Why:   SGLang 0.5.16 to 0.5.23 look at a request's sampling_seed only under enable_deterministic_inference, which gives
       every request without a seed the same one, excludes min_p, and wants particular attention kernels
How:   a batch with a seed in it carries one a row (UNSEEDED where there is none). The usual sampler chooses; then the
       rows with a seed choose again by Gumbel-max over their own filtered weights, with noise from hash(seed, position,
       rank of the token). A request's choice depends on its own row alone, so batching and disaggregation keep it
Cost:  nothing in a batch without a seed; else a sort of the rows that have one, and a look at which they are
"""

from __future__ import annotations

from typing import Any

from disagg.sglang.plugins.instead import acts_here, instead_of

UNSEEDED = -(2**63)  # a client that asks for exactly this seed gets the next one


def activate() -> None:
    if not acts_here("seeds"):
        return
    from sglang.srt.layers import sampler
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    carry_seeds(SamplingBatchInfo, _sampling_backend)
    sample_with_seeds(sampler)


def carry_seeds(info_class: Any, sampling_backend: Any) -> None:
    import torch

    from_batch = info_class.from_schedule_batch.__func__

    def from_schedule_batch(cls: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        info = from_batch(cls, batch, *args, **kwargs)
        # Not None: deterministic inference is on, and SGLang itself handles seeds. Flashinfer's samplers take no seeds;
        # a speculative verifier would take UNSEEDED for a seed.
        if info.sampling_seed is None and batch.spec_algorithm.is_none():
            given = [r.sampling_params.sampling_seed for r in batch.reqs]
            if any(seed is not None for seed in given) and sampling_backend() == "pytorch":
                seeds = [UNSEEDED if seed is None else max(seed, UNSEEDED + 1) for seed in given]
                info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=info.device)
        return info

    @instead_of(info_class)
    def merge_batch(self: Any, other: Any) -> Any:
        if (self.sampling_seed is None) != (other.sampling_seed is None):  # SGLang would keep one side's alone
            lacks = self if self.sampling_seed is None else other
            lacks.sampling_seed = torch.full((len(lacks),), UNSEEDED, dtype=torch.int64, device=lacks.device)
        return merge_batch.real(self, other)

    info_class.from_schedule_batch = classmethod(from_schedule_batch)


def sample_with_seeds(sampler: Any) -> None:
    """`sampler`: SGLang's module of that name."""

    @instead_of(sampler, "top_k_top_p_min_p_sampling_from_probs_torch")
    def top_k_top_p_min_p(
        probs: Any, top_ks: Any, top_ps: Any, min_ps: Any, need_min_p: bool, seeds: Any, positions: Any, **kwargs: Any
    ) -> Any:
        result = top_k_top_p_min_p.real(probs, top_ks, top_ps, min_ps, need_min_p, None, positions, **kwargs)
        rows = _seeded_rows(seeds)
        if rows is None:
            return result
        weights, order = _filtered(probs[rows], top_ks[rows], top_ps[rows], min_ps[rows] if need_min_p else None)
        column = _choose(weights, seeds[rows], positions[rows])
        ids = result[0] if isinstance(result, tuple) else result
        ids[rows] = order.gather(1, column).view(-1).to(ids.dtype)
        if isinstance(result, tuple):  # from 0.5.20 on, for return_sampling_mask: the chosen token's weight, too
            result[3][rows] = weights.gather(1, column).view(-1).to(result[3].dtype)
        return result

    @instead_of(sampler, "sampling_from_probs_torch")
    def sampling_from_probs(probs: Any, sampling_seed: Any = None, positions: Any = None) -> Any:
        ids = sampling_from_probs.real(probs, None, positions)
        rows = _seeded_rows(sampling_seed)
        if rows is not None:
            weights, order = probs[rows].sort(dim=-1, descending=True, stable=True)
            column = _choose(weights, sampling_seed[rows], positions[rows])
            ids[rows] = order.gather(1, column).view(-1).to(ids.dtype)
        return ids


def _seeded_rows(seeds: Any) -> Any:
    rows = None if seeds is None else (seeds != UNSEEDED).nonzero().view(-1)
    return rows if rows is not None and len(rows) else None


def _filtered(probs: Any, top_ks: Any, top_ps: Any, min_ps: Any) -> tuple[Any, Any]:
    """As SGLang filters: each row's weights from the largest on, 0 where a filter takes a token out; whose they are.

    Not SGLang's own: 0.5.16 to 0.5.19 do not give theirs out.
    """
    import torch

    weights, order = probs.sort(dim=-1, descending=True, stable=True)
    before = weights.cumsum(dim=-1) - weights
    rank = torch.arange(weights.shape[-1], device=weights.device)
    is_out = (rank >= top_ks.view(-1, 1)) | (before > top_ps.view(-1, 1))
    if min_ps is not None:
        is_out |= weights < weights[:, :1] * min_ps.view(-1, 1)
    return weights.masked_fill(is_out, 0.0), order


def _choose(weights: Any, seeds: Any, positions: Any) -> Any:
    """Index of the chosen column of each row; weights need not sum to 1."""
    import torch

    columns = torch.arange(weights.shape[1], device=weights.device)
    noise = _uniform(seeds[:, None], positions[:, None].to(torch.int64), columns[None, :])
    return torch.argmax(weights.double().log() - torch.log(-torch.log(noise)), dim=1, keepdim=True)


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
