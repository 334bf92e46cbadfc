"""Who holds a run, in one 64-bit number: none, one, two or three members in the number itself, more in a shared set.

A member is a number of 18 bits that the index gives to a slot, and never to two at a time. A member holds a run in one
tier or in both.
"""

from __future__ import annotations

from array import array

from disagg.kv_events.events import Tier

MEMBERS_MAX = (1 << 18) - 1
DEVICE, HOST = int(Tier.DEVICE), int(Tier.HOST)
_BITS = 20  # (member + 1) * 4 + tiers
_FIELD = (1 << _BITS) - 1
_INLINE_MAX = 3
_SHARED = 1 << 63
_SET_BYTES = 300  # of a shared set: its tuple, its masks, its entries in dict and lists

Masks = tuple[int, int]  # bit m: member m holds it in device memory; in host memory


class Holders:
    """Shared sets, each once. A number that is kept is to be `retain`ed, and `release`d when it is no longer."""

    def __init__(self) -> None:
        self._masks: list[Masks] = []
        self._counts = array("I")  # of runs that keep it
        self._ids: dict[Masks, int] = {}
        self._free: list[int] = []
        self._words = 0  # 8-byte words of all masks

    @property
    def memory_bytes(self) -> int:
        return len(self._masks) * _SET_BYTES + 8 * self._words

    def retain(self, number: int) -> None:
        if number & _SHARED:
            self._counts[number ^ _SHARED] += 1

    def release(self, number: int) -> None:
        if number & _SHARED:
            index = number ^ _SHARED
            self._counts[index] -= 1
            if not self._counts[index]:
                masks = self._masks[index]
                self._words -= _words(masks)
                del self._ids[masks]
                self._masks[index] = (0, 0)
                self._free.append(index)

    def tiers(self, number: int, member: int) -> int:
        """In which tiers the member is; 0 if in none."""
        if number & _SHARED:
            device, host = self._masks[number ^ _SHARED]
            bit = 1 << member
            return (DEVICE if device & bit else 0) | (HOST if host & bit else 0)
        member += 1
        while number:
            field = number & _FIELD
            if field >> 2 == member:
                return field & 3
            number >>= _BITS
        return 0

    def masks(self, number: int) -> Masks:
        if number & _SHARED:
            return self._masks[number ^ _SHARED]
        device = host = 0
        while number:
            field = number & _FIELD
            bit = 1 << (field >> 2) - 1
            if field & DEVICE:
                device |= bit
            if field & HOST:
                host |= bit
            number >>= _BITS
        return device, host

    def set(self, number: int, member: int, tiers: int) -> int:
        """The number of the same holders, but with this member in these tiers; in none: without it."""
        if not number:
            return (member + 1) << 2 | tiers if tiers else 0
        if number <= _FIELD and number >> 2 == member + 1:
            return (member + 1) << 2 | tiers if tiers else 0
        device, host = self.masks(number)
        bit = 1 << member
        device = device | bit if tiers & DEVICE else device & ~bit
        host = host | bit if tiers & HOST else host & ~bit
        return self.number((device, host))

    def without(self, number: int, members: int) -> int:
        """The number of the same holders without those of the mask."""
        device, host = self.masks(number)
        if not (device | host) & members:
            return number
        return self.number((device & ~members, host & ~members))

    def number(self, masks: Masks) -> int:
        device, host = masks
        anywhere = device | host
        if anywhere.bit_count() <= _INLINE_MAX:
            number = 0
            while anywhere:  # the highest first, so that the lowest member ends in the lowest field
                member = anywhere.bit_length() - 1
                tiers = (device >> member & 1) | (host >> member & 1) << 1
                number = number << _BITS | (member + 1) << 2 | tiers
                anywhere ^= 1 << member
            return number
        index = self._ids.get(masks)
        if index is None:
            if self._free:
                index = self._free.pop()
                self._masks[index] = masks
            else:
                index = len(self._masks)
                self._masks.append(masks)
                self._counts.append(0)
            self._ids[masks] = index
            self._words += _words(masks)
        return _SHARED | index


def _words(masks: Masks) -> int:
    return (masks[0].bit_length() + masks[1].bit_length()) // 60
