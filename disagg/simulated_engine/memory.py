"""KV memory of one simulated dp rank: pages, and a prefix cache whose pages are evicted when needed.

Way:   rank scheduler -> [KvPool.take] for a prompt, `grow` for its output, `give_back` at its end
Owns:  the count of pages. A page belongs to one holding, or to the cache; blocks that a holding reads are locked
Fails: where there is no room `take` returns None and `grow` False, and nothing changes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

from disagg.plane.messages import pack_ids
from disagg.simulated_engine.tokens import start_of

KvEvents = Callable[[str, list[int]], None]  # ("stored" or "removed", hashes of blocks)


@dataclass(slots=True, eq=False)
class Holding:
    """What one leg holds of a pool."""

    pages: int  # its own, without those it reads from the cache
    blocks: list[int]  # hashes of the prompt's full blocks; the first `hit_count` were cached
    hit_count: int
    is_open: bool = True


class KvPool:
    """`block_tokens`: what is cached and evicted as one, a multiple of the page size; 0 for no prefix cache."""

    def __init__(self, tokens: int, page_size: int, block_tokens: int = 0, on_event: KvEvents | None = None) -> None:
        self.page_size, self._block_tokens, self._on_event = page_size, block_tokens, on_event
        self._pages_total = tokens // page_size
        self._block_pages = block_tokens // page_size
        self._pages_owned = 0
        self._locks: dict[int, int] = {}  # cached block -> holdings that read it; the oldest first
        self._locked_count = 0
        self.is_exhausted = False  # a fault: nothing is free

    @property
    def tokens_used(self) -> int:
        """Blocks that nobody reads count as free."""
        return (self._pages_owned + self._locked_count * self._block_pages) * self.page_size

    @property
    def tokens_total(self) -> int:
        return self._pages_total * self.page_size

    def take(self, prompt_ids: list[int], tokens: int, adapter: str = "") -> tuple[Holding, int] | None:
        """Room for `tokens` (the prompt among them), and how many prompt tokens are in the cache already, read with
        the same adapter."""
        blocks = self._blocks(prompt_ids, start_of(adapter)) if self._block_tokens else []
        hits = 0
        # At least one token is computed: the last one, whose output is wanted.
        while hits < len(blocks) and blocks[hits] in self._locks and (hits + 1) * self._block_tokens < len(prompt_ids):
            hits += 1
        cached_tokens = hits * self._block_tokens
        self._lock(blocks[:hits])
        pages = -(-(tokens - cached_tokens) // self.page_size)
        if not self._make_room(pages):
            self._unlock(blocks[:hits])
            return None
        self._pages_owned += pages
        return Holding(pages, blocks, hits), cached_tokens

    def grow(self, holding: Holding, pages: int) -> bool:
        if not self._make_room(pages):
            return False
        holding.pages += pages
        self._pages_owned += pages
        return True

    def give_back(self, holding: Holding, computed_tokens: int) -> None:
        """Full blocks among the prompt's `computed_tokens` stay in the cache."""
        assert holding.is_open, "given back twice"
        holding.is_open = False
        self._pages_owned -= holding.pages
        hits, block_count = holding.hit_count, computed_tokens // self._block_tokens if self._block_tokens else 0
        self._unlock(holding.blocks[:hits])
        new = [block for block in holding.blocks[hits:block_count] if block not in self._locks]
        for block in new:
            self._locks[block] = 0
        if new and self._on_event is not None:
            self._on_event("stored", new)

    def flush(self) -> None:
        """Nothing is held: every block goes."""
        assert not self._pages_owned, "flushed while pages are held"
        blocks = list(self._locks)
        self._locks.clear()
        if blocks and self._on_event is not None:
            self._on_event("removed", blocks)

    def _blocks(self, prompt_ids: list[int], state: int) -> list[int]:
        packed, width, blocks = pack_ids(prompt_ids), self._block_tokens * 4, []
        for at in range(0, len(packed) - width + 1, width):
            state = crc32(packed[at : at + width], state)
            blocks.append(state)
        return blocks

    def _make_room(self, pages: int) -> bool:
        cached = len(self._locks) * self._block_pages
        lacking = self._pages_owned + cached + pages - self._pages_total
        evictable = (len(self._locks) - self._locked_count) * self._block_pages
        if self.is_exhausted or lacking > evictable:
            return False
        if lacking > 0:
            free = (block for block, readers in self._locks.items() if not readers)
            out = [next(free) for _ in range(-(-lacking // self._block_pages))]
            for block in out:
                del self._locks[block]
            if self._on_event is not None:
                self._on_event("removed", out)
        return True

    def _lock(self, blocks: list[int]) -> None:
        for block in blocks:
            readers = self._locks.pop(block)
            self._locked_count += readers == 0
            self._locks[block] = readers + 1  # at the end: the newest used

    def _unlock(self, blocks: list[int]) -> None:
        for block in blocks:
            self._locks[block] -= 1
            self._locked_count -= self._locks[block] == 0
