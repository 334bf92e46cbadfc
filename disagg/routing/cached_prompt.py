"""How much of one prompt each endpoint has cached.

Way:   Endpoints.cached -> [CachedPrompt] -> policy
Cost:  each group of equal depth is gone through for who is new in it, and once for all endpoints
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from disagg.routing.endpoints import Endpoint
from disagg.routing.prefix_index.held import Held


class CachedPrompt:
    """Tokens of the prompt, in whole KV blocks from its first one on."""

    __slots__ = ("_by_slot", "_depths", "most")

    def __init__(self, groups: Sequence[Held], block_tokens: int, by_slot: Mapping[int, Endpoint]) -> None:
        """`groups`: the deepest first; the slots of each are in all that follow, too."""
        self._by_slot = by_slot
        self.most = groups[0].blocks * block_tokens if groups else 0  # of the one that has most, anywhere
        anywhere: dict[int, int] = {}  # the deepest first
        device: dict[int, int] = {}
        for group in groups:
            tokens = group.blocks * block_tokens
            for found, slots in ((anywhere, group.anywhere), (device, group.device)):
                if len(slots) > len(found):
                    for slot in slots:
                        if slot not in found:
                            found[slot] = tokens
        self._depths = device, anywhere

    def of(self, endpoint: Endpoint) -> tuple[int, int]:
        """(what it has on its device, what it has there or in its host's memory)."""
        device, anywhere = self._depths
        return device.get(endpoint.slot, 0), anywhere.get(endpoint.slot, 0)

    def warmest(self) -> Iterator[Endpoint]:
        """Those that have any of it, those with most first."""
        return (self._by_slot[slot] for slot in self._depths[1])


NOT_CACHED = CachedPrompt((), 0, {})
