"""How much of one prompt each endpoint has cached.

Way:   Endpoints.cached -> [CachedPrompt] -> policy
Cost:  an endpoint is looked for in a few groups of equal depth; nobody goes through all that hold the beginning
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from disagg.routing.endpoints import Endpoint
from disagg.routing.prefix_index.held import Held


class CachedPrompt:
    """Tokens of the prompt, in whole KV blocks from its first one on."""

    __slots__ = ("_block_tokens", "_by_slot", "_groups")

    def __init__(self, groups: Sequence[Held], block_tokens: int, by_slot: Mapping[int, Endpoint]) -> None:
        """`groups`: the deepest first; the slots of each are in all that follow, too."""
        self._groups, self._block_tokens, self._by_slot = groups, block_tokens, by_slot

    @property
    def most(self) -> int:
        """What the one that has most has, on its device or its host."""
        return self._groups[0].blocks * self._block_tokens if self._groups else 0

    def of(self, endpoint: Endpoint) -> tuple[int, int]:
        """(what it has on its device, what it has there or in its host's memory)."""
        slot, anywhere = endpoint.slot, 0
        for group in self._groups:
            if slot in group.anywhere:
                anywhere = anywhere or group.blocks
                if slot in group.device:
                    return group.blocks * self._block_tokens, anywhere * self._block_tokens
        return 0, anywhere * self._block_tokens

    def warmest(self) -> Iterator[Endpoint]:
        """Those that have any of it, those with most first; each once."""
        seen: set[int] = set()
        for group in self._groups:
            for slot in group.anywhere:
                if slot not in seen:
                    seen.add(slot)
                    yield self._by_slot[slot]


NOT_CACHED = CachedPrompt((), 0, {})
