"""Guesses what each rank has cached from what was routed to it, where its events are off or lag.

Way:   a routed request's path -> [PredictedCache] -> PrefixIndex
Owns:  for each slot, its paths in order of last use, no more of them than its KV capacity
Fails: never. A guess that was wrong costs a detour, and is overwritten by the next request
"""

from __future__ import annotations

from array import array
from collections import OrderedDict

from disagg.routing.prefix_index.index import PrefixIndex


class PredictedCache:
    """Feeds `index` for the slots it is told of, as an engine's LRU cache would."""

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        self._ranks: dict[int, _Lru] = {}

    def remove(self, slot: int) -> None:
        """Guesses no more: the slot's rank tells by itself, or is gone. What the index has is not touched."""
        self._ranks.pop(slot, None)

    def used(self, slot: int, path: array[int], capacity_blocks: int) -> None:
        """A request with this path was routed to the slot, whose cache has so many blocks."""
        if slot not in self._ranks:
            self._ranks[slot] = _Lru(slot, capacity_blocks, self._index)
        self._ranks[slot].used(path)


class _Lru:
    """One rank's paths. A path is named by its last key, and stands for the blocks that no path used later holds."""

    def __init__(self, slot: int, capacity_blocks: int, index: PrefixIndex) -> None:
        self._slot = slot
        self._capacity_blocks = capacity_blocks
        self._index = index
        self._paths: OrderedDict[int, array[int]] = OrderedDict()  # by last key, the coldest first

    def used(self, path: array[int]) -> None:
        path = path[: self._capacity_blocks]
        self._paths[path[-1]] = path
        self._paths.move_to_end(path[-1])
        self._index.store(self._slot, path)
        while self._index.blocks_of(self._slot) > self._capacity_blocks:
            _, coldest = self._paths.popitem(last=False)
            self._index.cut(self._slot, coldest, self._kept_by_others(coldest))

    def _kept_by_others(self, path: array[int]) -> int:
        keep = 0
        for other in self._paths.values():
            shared = 0
            for mine, theirs in zip(path, other, strict=False):
                if mine != theirs:
                    break
                shared += 1
            keep = max(keep, shared)
        return keep
