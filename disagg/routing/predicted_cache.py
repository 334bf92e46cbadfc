"""Guesses what each rank has cached from what was routed to it, where its events are off or lag.

Way:   a routed request's path -> [PredictedCache] -> PrefixIndex
Owns:  for each slot that it guesses for, the blocks that its last requests used, no more than its KV has room for: 8
       bytes a block, and a segment wherever paths part
Fails: never. A wrong guess costs a detour, or a prefix that is read again. Blocks that answers add are not guessed: the
       next turn of a conversation tells them
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass

from disagg.routing.prefix_index.index import PrefixIndex


class PredictedCache:
    """Feeds `index` for the slots that it is told of, as an engine's radix cache would that drops what was used longest
    ago. A slot is to be fed by nobody else meanwhile."""

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


@dataclass(slots=True, eq=False)
class _Segment:
    """Blocks that were used together so far, and those before them."""

    keys: array[int]
    before: _Segment | None


class _Lru:
    """One rank's segments. What lies before a segment is always used later than that, so the coldest one is a leaf."""

    def __init__(self, slot: int, capacity_blocks: int, index: PrefixIndex) -> None:
        self._slot = slot
        self._capacity_blocks = capacity_blocks
        self._index = index
        self._blocks = 0
        self._by_first_key: dict[int, _Segment] = {}
        self._by_use: OrderedDict[_Segment, None] = OrderedDict()  # the coldest first

    def used(self, path: array[int]) -> None:
        path = path[: self._capacity_blocks]
        last, matched = self._follow(path)
        new = len(path) - matched
        if new:
            last = self._add(path[matched:], last)
            self._blocks += new
        while last is not None:
            self._by_use.move_to_end(last)
            last = last.before
        while self._blocks > self._capacity_blocks:
            self._drop_coldest()
        self._index.store(self._slot, path, new=new)

    def _follow(self, path: array[int]) -> tuple[_Segment | None, int]:
        """The last segment of the path, which ends where the path ends or leaves it, and the blocks up to there."""
        last, matched = None, 0
        while matched < len(path) and (segment := self._by_first_key.get(path[matched])):
            rest = path[matched : matched + len(segment.keys)]
            shared = _shared(rest, segment.keys)
            last = segment if shared == len(segment.keys) else self._split(segment, shared)
            matched += shared
        return last, matched

    def _add(self, keys: array[int], before: _Segment | None) -> _Segment:
        segment = _Segment(keys, before)
        self._by_first_key[keys[0]] = segment
        self._by_use[segment] = None
        return segment

    def _split(self, lower: _Segment, at: int) -> _Segment:
        """The upper part. What follows the segment follows its lower part, which keeps its place in the order."""
        upper = self._add(lower.keys[:at], lower.before)
        lower.keys, lower.before = lower.keys[at:], upper
        self._by_first_key[lower.keys[0]] = lower
        return upper

    def _drop_coldest(self) -> None:
        coldest, _ = self._by_use.popitem(last=False)
        del self._by_first_key[coldest.keys[0]]
        self._blocks -= len(coldest.keys)
        parts = [coldest.keys]
        while coldest.before is not None:
            coldest = coldest.before
            parts.append(coldest.keys)
        path = array("Q")
        for part in reversed(parts):
            path.extend(part)
        self._index.cut(self._slot, path, len(path) - len(parts[0]))


def _shared(keys: array[int], others: array[int]) -> int:
    """How many are the same. Keys are chained: where two are equal, all before them are."""
    return bisect_left(range(len(keys)), 1, key=lambda at: keys[at] != others[at])
