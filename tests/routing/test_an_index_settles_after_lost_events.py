"""Events that are lost, doubled or late leave an index wrong until the rank is cleared and told anew, and no longer."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share prefixes.py; they are not a package

from prefixes import UNSURE_BLOCKS, NaiveIndex, Prompts, assert_well_formed, depth

from disagg.routing.prefix_index.index import PrefixIndex

RANKS = range(4)


class Rank:
    """An engine's cache, which drops leaves, and what it says of them: (path, blocks to keep, new blocks)."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.leaves: list[list[int]] = []

    def step(self) -> tuple[list[int], int, int]:
        if len(self.leaves) > 12:
            leaf = self.leaves.pop(self._random.randrange(len(self.leaves)))
            return leaf, self._held(leaf), 0
        known = self._random.choice(self.leaves) if self.leaves else [0] * 10
        shared = known[: self._random.randint(0, len(known))]
        prompt = [*shared, self._random.randrange(4), *[0] * self._random.randint(0, 20)]
        new = len(prompt) - self._held(prompt)
        self.leaves = [leaf for leaf in self.leaves if leaf != prompt[: len(leaf)]]
        if new:
            self.leaves.append(prompt)
        return prompt, len(prompt), new

    def _held(self, prompt: list[int]) -> int:
        return max((_shared(prompt, leaf) for leaf in self.leaves), default=0)


def _shared(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("seed", range(6))
def test_an_index_settles_after_lost_doubled_and_late_events(seed: int) -> None:
    random, prompts, index, naive = Random(seed), Prompts(seed), PrefixIndex(), NaiveIndex()
    ranks = [Rank(random) for _ in RANKS]
    seen: list[list[int]] = []
    for _ in range(400):
        slot = random.choice(RANKS)
        choices, keep, new = ranks[slot].step()
        path = prompts.path(choices)
        seen.append(choices)
        for _ in range(random.choice((0, 1, 1, 1, 1, 2))):
            if keep < len(path):
                index.cut(slot, path, keep)
            else:
                index.store(slot, path, new=new)
        if random.random() < 0.02:
            index.clear(slot)
    assert_nobody_is_left_out_of_the_tree(index)
    for slot in RANKS:
        index.clear(slot)
        for leaf in ranks[slot].leaves:
            path = prompts.path(leaf)
            index.store(slot, path)
            naive.store(slot, path)
    for choices in seen:
        path = prompts.path(choices)
        for slot in RANKS:
            truth = naive.depth(slot, path)
            assert truth - UNSURE_BLOCKS <= depth(index, slot, path) <= truth
    assert_nobody_is_left_out_of_the_tree(index)


def assert_nobody_is_left_out_of_the_tree(index: PrefixIndex) -> None:
    while index.sweep():
        pass
    assert_well_formed(index)


@pytest.mark.parametrize("seed", range(4))
def test_events_that_all_arrive_leave_no_rank_misjudged_about_its_own_paths(seed: int) -> None:
    random, prompts, index, naive = Random(seed), Prompts(seed), PrefixIndex(), NaiveIndex()
    ranks = [Rank(random) for _ in RANKS]
    for _ in range(300):
        slot = random.choice(RANKS)
        choices, keep, new = ranks[slot].step()
        path = prompts.path(choices)
        if keep < len(path):
            index.cut(slot, path, keep)
            naive.cut(slot, path, keep)
        else:
            index.store(slot, path, new=new)
            naive.store(slot, path)
    for slot in RANKS:
        for leaf in ranks[slot].leaves:
            path = prompts.path(leaf)
            assert naive.depth(slot, path) == len(path)
            assert len(path) - UNSURE_BLOCKS <= depth(index, slot, path) <= len(path)
