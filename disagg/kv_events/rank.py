"""What one dp rank's prefix cache holds, in whole KV blocks, from what its scheduler says.

Way:   scheduler's Events -> [RankCache.hear] -> HeldBlocks (held.py) -> Changes for frontends
Owns:  the scheduler's places: each is the last whole block before it, and the tokens that are left over
Fails: Confused where the scheduler speaks of a place it has not named. The rank is then to be forgotten, and to begin
       anew
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from disagg.kv_events.blocks import ID_BYTES, BlockHasher
from disagg.kv_events.changes import Change
from disagg.kv_events.events import At, Begun, Cleared, Event, Removed, Stored
from disagg.kv_events.held import Block, Confused, HeldBlocks, root


class _Place(NamedTuple):
    block: Block
    rest: bytes  # ids after it


class RankCache:
    """`adapter_of`: the adapter that the scheduler's word for one means."""

    def __init__(self, hasher: BlockHasher, adapter_of: Callable[[str], str]) -> None:
        self._hasher, self._adapter_of = hasher, adapter_of
        self._block_bytes = hasher.block_tokens * ID_BYTES
        self._roots: dict[tuple[str, str], Block] = {}
        self._places: dict[int, _Place] = {}
        self._held = HeldBlocks()

    @property
    def blocks(self) -> int:
        """How many are held, in any tier."""
        return len(self._held)

    def snapshot(self) -> Iterator[list[Change]]:
        return self._held.snapshot()

    def clear(self) -> list[Change]:
        self._places.clear()
        self._roots.clear()
        return self._held.clear()

    def hear(self, events: Sequence[Event]) -> list[Change]:
        """What they change. `events` happened at the same time. After Confused nothing here may be relied on."""
        changes: list[Change] = []
        held = self._held
        for event in events:
            match event:
                case At():
                    self._name(event)
                case Stored():
                    for block in self._last(event):
                        held.put(block, event.tier)
                case Removed():
                    for block in self._last(event):
                        held.take(block, event.tier)
                    del self._places[event.name]
                case Cleared() | Begun():
                    changes = self.clear()
        return changes + held.settle()

    def _name(self, at: At) -> None:
        parent = self._place(at.parent) if at.parent else _Place(self._root(at.adapter, at.salt), b"")
        block, ids, width = parent.block, parent.rest + at.ids, self._block_bytes
        for key in self._hasher.after(block.key, ids):
            block = self._held.child(block, key)
        self._places[at.name] = _Place(block, ids[len(ids) // width * width :])

    def _last(self, event: Stored | Removed) -> Iterator[Block]:
        """The blocks that end among the last `event.tokens` before its place, the last one first."""
        block, rest = self._place(event.name)
        tokens = block.depth * self._hasher.block_tokens + len(rest) // ID_BYTES
        left = (tokens - event.tokens) // self._hasher.block_tokens
        while block.depth > left:
            yield block
            assert block.parent is not None
            block = block.parent

    def _place(self, name: int) -> _Place:
        place = self._places.get(name)
        if place is None:
            raise Confused(f"place {name} has not been named")
        return place

    def _root(self, adapter: str, salt: str) -> Block:
        namespace = (adapter, salt)
        if namespace not in self._roots:
            self._roots[namespace] = root(self._hasher.root(self._adapter_of(adapter), salt))
        return self._roots[namespace]
