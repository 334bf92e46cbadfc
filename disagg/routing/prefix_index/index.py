"""Which ranks hold which prefixes. (For now the plain way: a dict of blocks. The radix tree comes.)"""

from __future__ import annotations

from array import array
from collections import defaultdict

from disagg.routing.prefix_index.held import Held, Tier


class PrefixIndex:
    """A slot is a number that its user gives to a rank; it may be given anew after `clear`."""

    def __init__(self, bytes_max: int = 1 << 30) -> None:
        self._holders: dict[int, dict[int, Tier]] = {}  # block key -> slot -> tiers
        self._children: dict[int, set[int]] = defaultdict(set)
        self.bytes_max = bytes_max
        self.forgotten = 0  # ranks, because memory ran out

    def store(self, slot: int, path: array[int], tier: Tier = Tier.DEVICE, new: int = 0) -> None:
        """The rank holds every block of the path. `new`: how many of the last ones it did not hold before, if known."""
        before = 0
        for key in path:
            self._children[before].add(key)
            holders = self._holders.setdefault(key, {})
            holders[slot] = holders.get(slot, Tier(0)) | tier
            before = key

    def cut(self, slot: int, path: array[int], keep: int, tier: Tier = Tier.DEVICE) -> None:
        """Of this path the rank holds no more than the first `keep` blocks in this tier, and nothing that follows the
        block after them."""
        below = [path[keep]] if keep < len(path) else []
        while below:
            key = below.pop()
            holders = self._holders.get(key, {})
            if holders.get(slot, Tier(0)) & tier:
                below.extend(self._children[key])
                holders[slot] &= ~tier
                if not holders[slot]:
                    del holders[slot]

    def clear(self, slot: int) -> None:
        """The rank holds nothing. The slot may be given to another rank at once."""
        for holders in self._holders.values():
            holders.pop(slot, None)

    def sweep(self, runs_max: int = 500) -> bool:
        """Frees some of what nobody holds since a `clear`; False when nothing is left to free."""
        return False

    def overlaps(self, path: array[int]) -> list[Held]:
        """Who holds how much of the path: the deepest first; each group's slots are in all groups after it, too."""
        groups: list[Held] = []
        for blocks, key in enumerate(path, 1):
            holders = self._holders.get(key, {})
            if not holders:
                break
            held = Held(
                blocks,
                frozenset(slot for slot, tiers in holders.items() if tiers & Tier.DEVICE),
                frozenset(holders),
            )
            if groups and groups[-1][1:] == held[1:]:
                groups.pop()
            groups.append(held)
        return groups[::-1]

    def blocks_of(self, slot: int) -> int:
        """Blocks that the rank holds."""
        return sum(slot in holders for holders in self._holders.values())

    @property
    def blocks(self) -> int:
        """Different blocks that somebody holds."""
        return sum(bool(holders) for holders in self._holders.values())

    @property
    def runs(self) -> int:
        return self.blocks

    @property
    def memory_bytes(self) -> int:
        return 300 * len(self._holders)
