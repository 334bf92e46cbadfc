"""Whatever ranks store, lose and forget, in whatever order: the index never believes in a block that is gone, and
misses at most the blocks beside a branch."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

sys.path.insert(0, str(Path(__file__).parent))  # tests share prefixes.py; they are not a package

from prefixes import UNSURE_BLOCKS, NaiveIndex, Prompts, assert_well_formed

from disagg.kv_events.events import Tier
from disagg.routing.prefix_index.held import Held
from disagg.routing.prefix_index.index import PrefixIndex

SLOTS = st.integers(0, 5)
TIERS = st.sampled_from(list(Tier))
SOME_TIERS = st.sampled_from([*Tier, Tier.DEVICE | Tier.HOST])


class Both(RuleBasedStateMachine):
    """One index and a naive one, with the same calls."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts = Prompts()
        self.index, self.naive = PrefixIndex(), NaiveIndex()
        self.known: list[list[int]] = [[0] * 40]

    @rule(data=st.data(), more=st.integers(0, 40), branch=st.integers(0, 3))
    def think_of_a_prompt(self, data: st.DataObject, more: int, branch: int) -> None:
        known = data.draw(st.sampled_from(self.known))
        shared = data.draw(st.integers(0, len(known)))
        self.known.append(known[:shared] + [branch] * min(1, more) + [0] * (more - 1))

    @rule(data=st.data(), slot=SLOTS, tier=TIERS, tells=st.booleans())
    def store(self, data: st.DataObject, slot: int, tier: Tier, tells: bool) -> None:
        path = self.prompts.path(data.draw(st.sampled_from(self.known)))
        new = len(path) - self.naive.depth(slot, path, tier)
        self.index.store(slot, path, tier, new if tells else None)
        self.naive.store(slot, path, tier)

    @rule(data=st.data(), slot=SLOTS, tiers=SOME_TIERS)
    def cut_anywhere(self, data: st.DataObject, slot: int, tiers: Tier) -> None:
        path = self.prompts.path(data.draw(st.sampled_from(self.known)))
        keep = data.draw(st.integers(0, len(path)))
        self.index.cut(slot, path, keep, tiers)
        for tier in tiers:
            self.naive.cut(slot, path, keep, tier)

    @rule(slot=SLOTS)
    def clear(self, slot: int) -> None:
        self.index.clear(slot)
        self.naive.clear(slot)

    @precondition(lambda self: self.index._members.to_sweep)
    @rule(runs=st.integers(1, 20))
    def sweep(self, runs: int) -> None:
        self.index.sweep(runs)

    @invariant()
    def agree(self) -> None:
        if not self.index._members.to_sweep:
            assert_well_formed(self.index)
        for known in self.known[-12:]:
            path = self.prompts.path(known)
            groups = self.index.overlaps(path)
            for deeper, held in pairwise(groups):
                assert deeper.blocks > held.blocks
                assert deeper.device <= held.device
                assert deeper.anywhere <= held.anywhere
            found = depths(groups)
            for slot in range(6):
                device = self.naive.depth(slot, path, Tier.DEVICE)
                anywhere = max(device, self.naive.depth(slot, path, Tier.HOST))
                told = found.get(slot, (0, 0))
                assert device - UNSURE_BLOCKS <= told[0] <= device
                assert anywhere - UNSURE_BLOCKS <= told[1] <= anywhere

    def teardown(self) -> None:
        for slot in range(6):
            self.index.clear(slot)
        while self.index.sweep():
            pass
        assert (self.index.runs, self.index.blocks) == (0, 0)


TestBoth = Both.TestCase
TestBoth.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)


def depths(groups: list[Held]) -> dict[int, tuple[int, int]]:
    """Slot -> blocks in device memory, blocks in device or host memory. One entry for each slot: for few slots."""
    found: dict[int, tuple[int, int]] = {}
    for blocks, device, anywhere in reversed(groups):  # the shallowest first, so that a deeper one overrides it
        for slot in anywhere:
            found[slot] = (blocks if slot in device else found[slot][0] if slot in found else 0, blocks)
    return found
