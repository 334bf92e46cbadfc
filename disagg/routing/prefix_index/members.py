"""The members behind slots: a slot that is cleared gets another one, so that clearing takes no time.

What the old member held stays in the tree until a sweep has gone through all of it; until then it counts for nobody.
"""

from __future__ import annotations

from itertools import compress

from disagg.routing.prefix_index.holders import MEMBERS_MAX, Masks

Slots = tuple[frozenset[int], frozenset[int]]  # in device memory; anywhere

_CACHED_SLOTS_MAX = 100_000  # in all cached sets together: about 5 MB
_AS_BITS = bytes.maketrans(b"01", b"\x00\x01")


class Members:
    """`dying`: the members that the sweep going on takes out of the tree, as a mask."""

    def __init__(self) -> None:
        self._member_of: dict[int, int] = {}  # by slot
        self._slots: list[int] = []  # by member
        self._blocks: list[int] = []  # that it holds, by member
        self._alive = 0
        self._free: list[int] = []
        self._cleared = 0  # for the next sweep
        self.dying = 0
        self._cache: dict[Masks, Slots] = {}
        self._cached_slots = 0

    def of(self, slot: int) -> int:
        """The slot's member, a new one if it has none."""
        member = self._member_of.get(slot, -1)
        if member < 0:
            if self._free:
                member = self._free.pop()
            else:
                member = len(self._slots)
                if member > MEMBERS_MAX:
                    raise OverflowError(f"{MEMBERS_MAX} slots are in use, or were cleared and are not swept yet")
                self._slots.append(0)
                self._blocks.append(0)
            self._slots[member] = slot
            self._member_of[slot] = member
            self._alive |= 1 << member
        return member

    def find(self, slot: int) -> int:
        """-1 if the slot has none."""
        return self._member_of.get(slot, -1)

    def clear(self, slot: int) -> None:
        member = self._member_of.pop(slot, -1)
        if member < 0:
            return
        self._alive ^= 1 << member
        if self._blocks[member]:
            self._blocks[member] = 0
            self._cleared |= 1 << member
        else:
            self._free.append(member)
        self._forget_cached()

    def condemn(self) -> bool:
        """A sweep begins, for all that were cleared; False if there is nobody."""
        self.dying, self._cleared = self._cleared, 0
        return bool(self.dying)

    def bury(self) -> None:
        """The sweep is over: no run names the dying any more."""
        while self.dying:
            member = self.dying.bit_length() - 1
            self._free.append(member)
            self.dying ^= 1 << member

    @property
    def to_sweep(self) -> bool:
        return bool(self.dying or self._cleared)

    def count(self, member: int, blocks: int) -> None:
        """The member holds so many blocks more, or less."""
        self._blocks[member] += blocks

    def blocks_of(self, slot: int) -> int:
        member = self._member_of.get(slot, -1)
        return self._blocks[member] if member >= 0 else 0

    def largest(self) -> int | None:
        """The slot that holds most; None if nobody holds anything."""
        slot = max(self._member_of, key=self.blocks_of, default=None)
        return slot if slot is not None and self.blocks_of(slot) else None

    def slots(self, masks: Masks) -> Slots:
        """Whose members these are; of those that were cleared, nobody's."""
        key = masks[0] & self._alive, masks[1] & self._alive
        found = self._cache.get(key)
        if found is None:
            anywhere = self._slots_of(key[0] | key[1])
            found = (anywhere if not key[1] & ~key[0] else self._slots_of(key[0])), anywhere
            self._cached_slots += len(anywhere) + 1
            if self._cached_slots > _CACHED_SLOTS_MAX:
                self._forget_cached()
            self._cache[key] = found
        return found

    def _slots_of(self, mask: int) -> frozenset[int]:
        bits = format(mask, "b").encode().translate(_AS_BITS)[::-1]
        return frozenset(compress(self._slots, bits))

    def _forget_cached(self) -> None:
        self._cache.clear()
        self._cached_slots = 0
