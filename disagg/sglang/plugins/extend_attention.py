"""Torch's attention for the next chunk of a prompt, on a CPU: the chunk's queries alone, on all keys up to theirs.

Way:   cpu_bridges.py, in every scheduler -> the function of SGLang's torch_native backend that reads prompts
Why:   SGLang pads a chunk's queries to the whole prompt so far, and drops those rows again: a prompt of 8,000 tokens in
       chunks of 256 costs ten times the attention that it needs; a prompt of which much is cached, more still
Else:  without a prefix nothing is padded. That, and whatever is not plain causal attention, stays SGLang's own
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

from disagg.sglang.plugins.instead import acts_here, instead_of

QUERIES = 512  # at once; torch makes a float32 of their mask for each of their keys


def activate() -> None:
    if not acts_here("extend_attention"):
        return
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    without_padding(TorchNativeAttnBackend)


def without_padding(backend: Any) -> None:
    takes = inspect.signature(backend._run_sdpa_forward_extend)

    @instead_of(backend)
    def _run_sdpa_forward_extend(*args: Any, **kwargs: Any) -> Any:
        bound = takes.bind(*args, **kwargs)
        bound.apply_defaults()
        asked = SimpleNamespace(**bound.arguments)
        if _is_plain(asked) and asked.extend_prefix_lens.any():
            return _attend(asked)
        return _run_sdpa_forward_extend.real(*args, **kwargs)


def _is_plain(asked: Any) -> bool:
    window = asked.sliding_window_size
    has_window = window is not None and window > -1
    return asked.causal and not asked.is_cross_attn and asked.encoder_lens is None and not has_window


def _attend(asked: Any) -> Any:
    """Writes `output`, which is [tokens, heads, size] as `query` is: of one sequence after the other."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    prefixes, counts, read = asked.extend_prefix_lens.tolist(), asked.extend_seq_lens.tolist(), 0
    for row, prefix, count in zip(asked.req_pool_indices, prefixes, counts, strict=True):
        slots = asked.req_to_token[row, : prefix + count]
        keys, values = (cache[slots].movedim(0, 1).to(asked.query.dtype) for cache in (asked.k_cache, asked.v_cache))
        for begin in range(0, count, QUERIES):
            end = min(begin + QUERIES, count)
            here = slice(read + begin, read + end)
            sees = torch.ones(end - begin, prefix + end, dtype=torch.bool).tril_(prefix + begin)
            attended = scaled_dot_product_attention(
                asked.query[here].movedim(0, 1)[None],
                keys[None, :, : prefix + end],
                values[None, :, : prefix + end],
                attn_mask=sees,
                scale=asked.scaling,
                enable_gqa=asked.enable_gqa,
            )
            asked.output[here] = attended[0].movedim(1, 0)
        read += count
    return asked.output
