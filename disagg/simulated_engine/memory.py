"""KV memory of one simulated dp rank: pages, and a prefix cache whose pages are evicted when needed.

Way:   rank scheduler -> [KvPool.take] for a prompt, `grow` for its output, `give_back` at its end
Out:   what the cache stores and gives up, as a real scheduler tells it (disagg/kv_events/events.py)
Owns:  the count of pages. A page belongs to one holding, or to the cache; blocks that a holding reads are locked
Fails: where there is no room `take` returns None and `grow` False, and nothing changes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from disagg.kv_events.events import At, Cleared, Event, Removed, Stored, Tier
from disagg.plane.messages import pack_ids

OnEvents = Callable[[list[Event]], None]


@dataclass(slots=True, eq=False)
class Holding:
    """What one leg holds of a pool."""

    pages: int  # its own, without those it reads from the cache
    blocks: list[int]  # hashes of the prompt's full blocks; the first `hit_count` were cached
    hit_count: int
    packed: bytes  # the prompt's ids
    adapter: str
    salt: str
    is_open: bool = True


@dataclass(slots=True, eq=False)
class _Cached:
    at: At  # its name is the block's hash
    readers: int = 0  # holdings


class KvPool:
    """`block_tokens`: what is cached and evicted as one, a multiple of the page size; 0 for no prefix cache."""

    def __init__(self, tokens: int, page_size: int, block_tokens: int = 0, on_events: OnEvents | None = None) -> None:
        self.page_size, self._block_tokens, self._on_events = page_size, block_tokens, on_events
        self._pages_total = tokens // page_size
        self._block_pages = block_tokens // page_size
        self._pages_owned = 0
        # By hash, the oldest first. A block is never newer than the one before it in its prompt: it goes before that.
        self._cached: dict[int, _Cached] = {}
        self._locked_count = 0
        self.is_exhausted = False  # a fault: nothing is free

    @property
    def tokens_used(self) -> int:
        """Blocks that nobody reads count as free."""
        return (self._pages_owned + self._locked_count * self._block_pages) * self.page_size

    @property
    def tokens_total(self) -> int:
        return self._pages_total * self.page_size

    @property
    def cached(self) -> list[Event]:
        """All that the cache holds, as events."""
        events: list[Event] = []
        for block in reversed(self._cached.values()):
            events += (block.at, self._stored(block))
        return events

    def take(
        self, prompt_ids: Sequence[int], tokens: int, adapter: str = "", salt: str = ""
    ) -> tuple[Holding, int] | None:
        """Room for `tokens` (the prompt among them), and how many prompt tokens are in the cache already, read with
        the same adapter and salt."""
        packed = pack_ids(prompt_ids) if self._block_tokens else b""
        blocks = self._hashes(packed, adapter, salt)
        hits = 0
        # At least one token is computed: the last one, whose output is wanted.
        while hits < len(blocks) and blocks[hits] in self._cached and (hits + 1) * self._block_tokens < len(prompt_ids):
            hits += 1
        cached_tokens = hits * self._block_tokens
        self._lock(blocks[:hits])
        pages = -(-(tokens - cached_tokens) // self.page_size)
        if not self._make_room(pages):
            self._unlock(blocks[:hits])
            return None
        self._pages_owned += pages
        return Holding(pages, blocks, hits, packed, adapter, salt), cached_tokens

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
        self._unlock(holding.blocks[: holding.hit_count])
        block_count = computed_tokens // self._block_tokens if self._block_tokens else 0
        width, parent, new = self._block_tokens * 4, 0, list[_Cached]()
        used: list[tuple[int, _Cached]] = []
        for index, name in enumerate(holding.blocks[:block_count]):
            block = self._cached.pop(name, None)
            if block is None:
                ids = holding.packed[index * width : (index + 1) * width]
                namespace = () if parent else (holding.adapter, holding.salt)
                block = _Cached(At(name, parent, ids, *namespace))
                new.append(block)
            used.append((name, block))
            parent = name
        self._cached.update(reversed(used))
        self._tell(event for block in new for event in (block.at, self._stored(block)))

    def flush(self) -> None:
        """Nothing is held: every block goes."""
        assert not self._pages_owned, "flushed while pages are held"
        self._cached.clear()
        self._tell([Cleared()])

    def _tell(self, events: Iterable[Event]) -> None:
        if self._on_events is not None and (told := list(events)):
            self._on_events(told)

    def _stored(self, block: _Cached) -> Stored:
        return Stored(block.at.name, self._block_tokens, Tier.DEVICE)

    def _hashes(self, packed: bytes, adapter: str, salt: str) -> list[int]:
        if not self._block_tokens:
            return []
        width, blocks, state = (
            self._block_tokens * 4,
            list[int](),
            xxh3_64_intdigest(f"{len(adapter)} {adapter}{salt}".encode()),
        )
        for at in range(0, len(packed) - width + 1, width):
            state = xxh3_64_intdigest(packed[at : at + width], state)
            blocks.append(state)
        return blocks

    def _make_room(self, pages: int) -> bool:
        cached = len(self._cached) * self._block_pages
        lacking = self._pages_owned + cached + pages - self._pages_total
        evictable = (len(self._cached) - self._locked_count) * self._block_pages
        if self.is_exhausted or lacking > evictable:
            return False
        if lacking > 0:
            free = (name for name, block in self._cached.items() if not block.readers)
            out = [next(free) for _ in range(-(-lacking // self._block_pages))]
            for name in out:
                del self._cached[name]
            self._tell(Removed(name, self._block_tokens, Tier.DEVICE) for name in out)
        return True

    def _lock(self, names: list[int]) -> None:
        for name in reversed(names):
            block = self._cached.pop(name)
            self._locked_count += block.readers == 0
            block.readers += 1
            self._cached[name] = block  # at the end: the newest used

    def _unlock(self, names: list[int]) -> None:
        for name in names:
            block = self._cached[name]
            block.readers -= 1
            self._locked_count -= block.readers == 0
