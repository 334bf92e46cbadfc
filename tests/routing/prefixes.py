"""Paths whose branches differ in the bits that an index keeps of keys, and an index as one would first write it."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from random import Random

from disagg.kv_events.events import Tier
from disagg.routing.prefix_index.index import PrefixIndex

UNSURE_BLOCKS = 2  # that the index may credit to fewer ranks than hold them, beside a branch


class Prompts:
    """Prompts are lists of choices, one a block: which child of the block before. At most 16 of each."""

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)
        self._children: dict[int, list[int]] = {0: []}

    def path(self, choices: Iterable[int]) -> array[int]:
        key, keys = 0, array("Q")
        for choice in choices:
            children = self._children[key]
            while len(children) <= choice:
                low = ((key >> 20) + 5 * len(children)) % 16
                children.append(self._random.getrandbits(56) << 8 | low << 4 | low)
                self._children[children[-1]] = []
            key = children[choice]
            keys.append(key)
        return keys


class NaiveIndex:
    """A set of blocks for each slot and tier."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, Tier], dict[int, int]] = {}  # block -> the one before it

    def store(self, slot: int, path: Sequence[int], tier: Tier = Tier.DEVICE) -> None:
        held = self._held.setdefault((slot, tier), {})
        held.update(zip(path, itertools.chain([0], path), strict=False))

    def cut(self, slot: int, path: Sequence[int], keep: int, tier: Tier = Tier.DEVICE) -> None:
        held = self._held.get((slot, tier), {})
        lost = set(path[keep : keep + 1])
        while lost:
            for key in lost:
                held.pop(key, None)
            lost = {key for key, before in held.items() if before in lost}

    def clear(self, slot: int) -> None:
        for tier in Tier:
            self._held.pop((slot, tier), None)

    def depth(self, slot: int, path: Sequence[int], tier: Tier = Tier.DEVICE) -> int:
        held = self._held.get((slot, tier), {})
        return sum(1 for _ in itertools.takewhile(held.__contains__, path))


def depth(index: PrefixIndex, slot: int, path: array[int]) -> int:
    """Blocks in any tier."""
    return next((held.blocks for held in index.overlaps(path) if slot in held.anywhere), 0)


def assert_well_formed(index: PrefixIndex) -> None:
    """What must hold of the tree between any two calls."""
    runs = index._runs
    reached, blocks, below = set(), 0, [0]
    while below:
        parent = below.pop()
        tails = 0
        for run in runs.children_of(parent):
            assert run not in reached
            reached.add(run)
            assert runs.parents[run] == parent
            assert runs.ends[run] > runs.ends[parent]
            if runs.keys[run]:
                assert runs.table.find(runs.keys[run]) == run
            else:
                tails += 1
                assert runs.tail_of(parent) == run
            assert runs.holders[run] or runs.children[run]
            blocks += runs.ends[run] - runs.ends[parent]
            below.append(run)
        assert tails <= 1
    assert (len(reached), blocks) == (index.runs, index.blocks)
