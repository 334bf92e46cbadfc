"""What frontends measure of engines while they serve: from this a policy learns how long things take.

Way:   a leg's end, a host's report -> Router.observe -> [Policy.observe], of policies that have it
In:    times in seconds by the clock of whoever measured; sizes in tokens and bytes
"""

from __future__ import annotations

import msgspec

from disagg.routing.endpoints import RankId


class Prefilled(msgspec.Struct, frozen=True, gc=False):
    """A prompt has been read. `seconds`: from its first chunk to its last; `queued_s`: from its dispatch to its first
    chunk; `beside_tokens`: prompt tokens of others that were queued there when it was dispatched."""

    rank: RankId
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    queued_s: float
    beside_tokens: int = 0


class Transferred(msgspec.Struct, frozen=True, gc=False):
    """A prompt's KV has gone from `prefill` to `decode`. `kv_bytes` 0: decode had all of it."""

    prefill: RankId
    decode: RankId
    kv_bytes: int
    seconds: float


class Stepped(msgspec.Struct, frozen=True, gc=False):
    """A rank's decode steps of late took `seconds` each, with so many legs whose KV is so many tokens."""

    rank: RankId
    running: int
    context_tokens: int
    seconds: float


class Answered(msgspec.Struct, frozen=True, gc=False):
    """An answer is complete."""

    prompt_tokens: int
    new_tokens: int
    max_tokens: int


Observation = Prefilled | Transferred | Stepped | Answered
