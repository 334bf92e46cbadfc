"""Prompts of a plan as token ids: equal blocks are equal tokens, others share nothing but chance."""

from __future__ import annotations

from array import array
from hashlib import shake_128

from disagg.replay.workload import Planned

FIRST_ID = 100  # below it vocabularies have their special tokens


def prompt_ids(planned: Planned, block_tokens: int, vocabulary: int) -> list[int]:
    """`block_tokens`: of the trace's blocks, 0 where it has none. Ids are from FIRST_ID and below `vocabulary`."""
    count, kinds = planned.prompt_tokens, vocabulary - FIRST_ID
    if planned.blocks:
        names = [f"{planned.salt} {block}" for block in planned.blocks]
        width = block_tokens
    else:
        names, width = [f"alone {planned.salt} {planned.number}"], count
    random = array("I", b"".join(shake_128(name.encode()).digest(4 * width) for name in names))
    return [FIRST_ID + value % kinds for value in random[:count]]
