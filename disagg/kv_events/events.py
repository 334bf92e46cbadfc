"""What the scheduler of one dp rank says of its prefix cache; in order, and whole.

Way:   scheduler (sglang/plugins/kv_events.py) or simulated engine -> [Event]s -> RankCache (rank.py) in the host
Words: a *place* is an end of a run of tokens in the scheduler's tree, and stands for all tokens from the prompt's first
       one up to there. It has a name, a number that its scheduler chose and never uses twice. 0 is where prompts begin
"""

from __future__ import annotations

import enum

import msgspec


class Tier(enum.IntFlag):
    """Memory that holds KV."""

    DEVICE = 1
    HOST = 2  # it has to be loaded before it is of use


class Said(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class Begun(Said, frozen=True, tag="begun"):
    """What follows is all that the rank holds: whatever was said before is void."""

    dp_rank: int


class At(Said, frozen=True, tag="at"):
    """Names a place: `ids` (token ids, uint32 little-endian) after `parent`. `adapter` and `salt`, the namespace of a
    prompt, are said where `parent` is 0."""

    name: int
    parent: int
    ids: bytes
    adapter: str = ""
    salt: str = ""


class Stored(Said, frozen=True, tag="stored"):
    """KV of the last `tokens` before the place is in `tier` now."""

    name: int
    tokens: int
    tier: Tier


class Removed(Said, frozen=True, tag="removed"):
    """It is no longer there. The name is free of meaning from now on."""

    name: int
    tokens: int
    tier: Tier


class Cleared(Said, frozen=True, tag="cleared"):
    """The rank holds nothing, and no name means anything."""


Event = Begun | At | Stored | Removed | Cleared


class Telling(Said, frozen=True):
    """What happened in one round of the scheduler. `at_s`: its monotonic clock at the first of the events."""

    at_s: float
    events: list[Event]


encode_telling = msgspec.msgpack.Encoder().encode
decode_telling = msgspec.msgpack.Decoder(Telling).decode
