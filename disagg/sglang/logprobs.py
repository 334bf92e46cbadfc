"""SGLang's logprobs in the words of the plane.

Way:   a chunk's meta_info -> [output_logprobs, input_logprobs] -> LegSink
In:    lists of (logprob, token id, text), and beside them a list of such for the likeliest tokens in each place
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from disagg.plane.messages import TokenLogprobs


def output_logprobs(meta: Mapping[str, Any], count: int) -> list[TokenLogprobs] | None:
    """Of a chunk's `count` ids; None where the leg was not asked for them.

    SGLang's lists hold this chunk's, or all so far: the newest stand last either way.
    """
    said = meta.get("output_token_logprobs")
    if not said:
        return None
    return _joined(said[-count:], (meta.get("output_top_logprobs") or [])[-count:])


def input_logprobs(meta: Mapping[str, Any]) -> list[TokenLogprobs] | None:
    """Of the whole prompt, or None while the chunk does not tell them. Its first token has none."""
    said = meta.get("input_token_logprobs")
    return _joined(said, meta.get("input_top_logprobs") or []) if said else None


def _joined(said: Sequence[Sequence[Any]], likeliest: Sequence[Any]) -> list[TokenLogprobs]:
    tops = list(likeliest) + [None] * (len(said) - len(likeliest))
    return [
        TokenLogprobs(entry[1], entry[0], [(each[1], each[0]) for each in top or ()])
        for entry, top in zip(said, tops, strict=True)
    ]
