"""How much of one prompt each endpoint has cached.

Way:   Endpoints.cached -> [CachedPrompt] -> policy
Cost:  nothing until it is asked; then by the endpoints that are asked for, not by all that have some of it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from disagg.routing.endpoints import Endpoint
from disagg.routing.prefix_index.held import Held


class CachedPrompt:
    """Tokens of the prompt, in whole KV blocks from its first one on. `most`: of the one that has most, anywhere."""

    __slots__ = ("_block_tokens", "_groups", "most")

    def __init__(self, groups: Sequence[Held], block_tokens: int) -> None:
        """`groups`: the deepest first; the slots of each are in all that follow, too."""
        self._groups, self._block_tokens = groups, block_tokens
        self.most = groups[0].blocks * block_tokens if groups else 0

    def of(self, endpoint: Endpoint) -> tuple[int, int]:
        """(what it has on its device, what it has there or in its host's memory)."""
        slot, device, anywhere = endpoint.slot, 0, 0
        for group in reversed(self._groups):  # most have little of it, or nothing
            if slot not in group.anywhere:
                break
            anywhere = group.blocks
            if slot in group.device:
                device = group.blocks
        return device * self._block_tokens, anywhere * self._block_tokens

    def depths(self) -> list[tuple[frozenset[int], int]]:
        """The slots that have so many tokens at least, anywhere, with the fewest tokens first: those of each are in all
        before."""
        return [(group.anywhere, group.blocks * self._block_tokens) for group in reversed(self._groups)]

    @property
    def is_on_devices(self) -> bool:
        """Nobody has more of it in its host's memory than on its device."""
        return all(group.device is group.anywhere for group in self._groups)

    def warmest(self, slots: Set[int]) -> Iterator[int]:
        """Of these slots those that have any of it, those with most first."""
        before: frozenset[int] = frozenset()
        for group in self._groups:
            yield from group.anywhere.difference(before).intersection(slots)
            before = group.anywhere


NOT_CACHED = CachedPrompt((), 0)
