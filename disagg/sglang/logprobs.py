"""SGLang's logprobs in the words of the plane.

Way:   a chunk's meta_info -> [output_logprobs, input_logprobs] -> LegSink
In:    lists of (logprob, token id, text); beside them in each place a list of such for the likeliest tokens, and one
       for the ids that were asked for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from disagg.plane.messages import TokenLogprobs


def output_logprobs(meta: Mapping[str, Any], count: int) -> list[TokenLogprobs] | None:
    """Of a chunk's `count` ids; None where the leg was not asked for them.

    SGLang's lists hold this chunk's, or all so far: the newest stand last either way.
    """
    said = meta.get("output_token_logprobs")
    if not said:
        return None
    beside = ((meta.get(f"output_{what}_logprobs") or [])[-count:] for what in ("top", "token_ids"))
    return _joined(said[-count:], *beside)


def input_logprobs(meta: Mapping[str, Any]) -> list[TokenLogprobs] | None:
    """Of the whole prompt, or None while the chunk does not tell them. Its first token has none."""
    said = meta.get("input_token_logprobs")
    return _joined(said, *(meta.get(f"input_{what}_logprobs") or [] for what in ("top", "token_ids"))) if said else None


def _joined(said: Sequence[Sequence[Any]], likeliest: Sequence[Any], chosen: Sequence[Any]) -> list[TokenLogprobs]:
    rows = zip_longest(said, likeliest, chosen)
    return [TokenLogprobs(entry[1], entry[0], _pairs(top), _pairs(ids)) for entry, top, ids in rows]


def _pairs(row: Sequence[Sequence[Any]] | None) -> list[tuple[int, float]]:
    return [(each[1], each[0]) for each in row or ()]
