"""What changed in what a rank holds, in whole KV blocks, as frontends are told it.

Way:   HeldBlocks (held.py) -> [Change]s -> plane -> a frontend's index
Form:  each change names its blocks by their whole path of block keys (uint64, little-endian), so that it can be
       understood alone. In a frame a path says how many keys it shares with the one before
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import msgspec

from disagg.kv_events.events import Tier

STORED, REMOVED, CLEARED, LOST = "stored", "removed", "cleared", "lost"


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`stored`: the last `count` blocks of the path are in `tier` now. `removed`: they are no longer there, nor is what
    followed them; removed from DEVICE they are still in HOST, removed from HOST they are gone. `cleared`: the rank
    holds nothing. `lost`: what it holds is not known, until it is told to hold nothing. Of both the rest is empty."""

    kind: str
    tier: Tier = Tier.DEVICE
    shared: int = 0  # keys that the path begins with, those of the change before it in the frame
    keys: bytes = b""  # the rest of the path
    count: int = 0


def spelt_out(changes: Iterable[Change]) -> Iterator[tuple[str, Tier, array[int], int]]:
    """The changes of one frame: (kind, tier, the whole path, count). Raises ValueError where a path shares more than
    there is, or has no blocks to change."""
    path: array[int] = array("Q")
    for change in changes:
        if change.shared > len(path):
            raise ValueError(f"a path shares {change.shared} keys with one of {len(path)}")
        path = path[: change.shared]
        path.frombytes(change.keys)
        if change.kind in (STORED, REMOVED) and not 0 < change.count <= len(path):
            raise ValueError(f"{change.count} blocks change of {len(path)}")
        yield change.kind, change.tier, path, change.count
