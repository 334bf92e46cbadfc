"""An exact index beside the real one, which may take some blocks at a fork for another branch's (SURE_BLOCKS)."""

from __future__ import annotations

from array import array
from collections import defaultdict

from disagg.kv_events.events import Tier
from disagg.routing.prefix_index.index import PrefixIndex


class TwoIndexes(PrefixIndex):
    """Itself the real one; `exact` is told the same."""

    def __init__(self) -> None:
        super().__init__()
        self.exact: dict[int, dict[tuple[int, ...], Tier]] = defaultdict(dict)  # slot -> path of a block -> tiers

    def store(self, slot: int, path: array[int], tier: Tier = Tier.DEVICE, new: int = 0) -> None:
        super().store(slot, path, tier, new)
        held = self.exact[slot]
        known = [end for end in range(1, len(path) + 1) if tuple(path[:end]) in held]
        if tier == Tier.DEVICE and len(known) < len(path):
            assert new == len(path) - len(known), "the place of the fork was not told"
        for end in range(1, len(path) + 1):
            block = tuple(path[:end])
            held[block] = held.get(block, Tier(0)) | tier

    def cut(self, slot: int, path: array[int], keep: int, tier: Tier = Tier.DEVICE) -> None:
        super().cut(slot, path, keep, tier)
        held, gone = self.exact[slot], tuple(path[: keep + 1])
        for block in [block for block in held if len(gone) == keep + 1 and block[: keep + 1] == gone]:
            held[block] &= ~tier
            if not held[block]:
                del held[block]

    def clear(self, slot: int) -> None:
        super().clear(slot)
        self.exact[slot].clear()

    def depth(self, slot: int, path: list[int]) -> int:
        """What the real one says the rank holds of this path."""
        return max((held.blocks for held in self.overlaps(array("Q", path)) if slot in held.anywhere), default=0)
