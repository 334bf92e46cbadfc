"""What frontends measure of engines while they serve: from this a policy learns how long things take.

Way:   a leg's end, a host's report -> Router.observe -> [Policy.observe], of policies that have it
In:    times in seconds by the clock of whoever measured; sizes in tokens and bytes
"""

from __future__ import annotations

import msgspec

from disagg.routing.endpoints import RankId


class Read(msgspec.Struct, frozen=True, gc=False):
    """What a rank read between two reports of its host, all frontends' prompts together (plane.ledger.Reading): it was
    busy with it for `seconds` of `over_s`."""

    rank: RankId
    prompts: int
    tokens: int  # without cached ones
    area: float  # tokens²
    seconds: float
    over_s: float
    loaded: int = 0  # cached tokens that came from its host's memory for it


class Transferred(msgspec.Struct, frozen=True, gc=False):
    """A prompt's KV has gone from `prefill` to `decode`; `kv_bytes` 0: decode had all of it."""

    prefill: RankId
    decode: RankId
    prompt_tokens: int
    kv_bytes: int
    seconds: float
    shared: str = ""  # the nearest kind of place that both are in (disagg/nearness.py)


class Stepped(msgspec.Struct, frozen=True, gc=False):
    """A rank's decode steps took `seconds` each, with so many legs whose KV is so many tokens."""

    rank: RankId
    legs: int
    kv_tokens: int
    seconds: float


class Answered(msgspec.Struct, frozen=True, gc=False):
    """An answer is complete."""

    prompt_tokens: int
    new_tokens: int
    max_tokens: int


Observation = Read | Transferred | Stepped | Answered
