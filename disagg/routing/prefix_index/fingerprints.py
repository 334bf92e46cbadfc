"""4 bits of each block's key: enough to see how far a path follows a run, and where it leaves it.

Keys are chained: from the block on at which two paths part, all their keys differ. So the first fingerprint that
differs is that block's in 15 of 16 cases, in 255 of 256 at most one block later, and never a block before.

Fingerprints lie by their place in the path: block i is the nibble i % 2 of byte i // 2. A run's are kept in whole units
of 8 blocks (4 bytes); what lies in its first and last unit beside it has no meaning.
"""

from __future__ import annotations

import sys
from array import array

UNIT_BLOCKS = 8
UNIT_BYTES = 4
CHUNK_UNITS = 1 << 16
_LOW_BYTE = 0 if sys.byteorder == "little" else 7


def fingerprints(path: array[int]) -> bytes:
    """Of a whole path, in whole units."""
    octets = path.tobytes()
    even, odd = octets[_LOW_BYTE::16], octets[_LOW_BYTE + 8 :: 16]
    size = -(-len(path) // UNIT_BLOCKS) * UNIT_BYTES
    ones = _ONES if size == UNIT_BYTES else int.from_bytes(b"\x01" * size)
    low = int.from_bytes(even, "little") & 0x0F * ones
    return (low | int.from_bytes(odd, "little") & 0xF0 * ones).to_bytes(size, "little")


_ONES = int.from_bytes(b"\x01" * UNIT_BYTES)


def units_of(start: int, end: int) -> tuple[int, int]:
    """The units of a path that the blocks from start to end lie in."""
    return start // UNIT_BLOCKS, -(-end // UNIT_BLOCKS)


class Arena:
    """Memory for the fingerprints of runs, in chunks that never move.

    What is freed is given to a run that needs as much or less, and is not joined with what is free beside it: so runs
    get shorter when memory is used up. Places are numbers of units, from 0.
    """

    def __init__(self) -> None:
        self._chunks: list[bytearray] = []
        self._next = 0  # the first unit that was never given out
        self._free: dict[int, array[int]] = {}  # number of units -> places
        self._sizes = 0  # bit n: a place of n units is free

    @property
    def memory_bytes(self) -> int:
        return self.chunk_bytes + sum(places.__sizeof__() for places in self._free.values())

    @property
    def chunk_bytes(self) -> int:
        return len(self._chunks) * CHUNK_UNITS * UNIT_BYTES

    @property
    def units_free(self) -> int:
        """Of the largest place that is free."""
        return max(0, self._sizes.bit_length() - 1)

    def put(self, octets: bytes) -> int:
        """The place where these whole units are kept from now on."""
        units = len(octets) // UNIT_BYTES
        place = self._take(units)
        at = place % CHUNK_UNITS * UNIT_BYTES
        self._chunks[place // CHUNK_UNITS][at : at + len(octets)] = octets
        return place

    def read(self, place: int, units: int) -> bytearray:
        at = place % CHUNK_UNITS * UNIT_BYTES
        return self._chunks[place // CHUNK_UNITS][at : at + units * UNIT_BYTES]

    def free(self, place: int, units: int) -> None:
        if units not in self._free:
            self._free[units] = array("I")
        self._free[units].append(place)
        self._sizes |= 1 << units

    def free_all(self) -> None:
        """Makes one place of each chunk again."""
        self._free = {CHUNK_UNITS: array("I", range(0, len(self._chunks) * CHUNK_UNITS, CHUNK_UNITS))}
        self._sizes = 1 << CHUNK_UNITS if self._chunks else 0
        self._next = len(self._chunks) * CHUNK_UNITS

    def _take(self, units: int) -> int:
        larger = self._sizes >> units
        if larger:
            size = units + (larger & -larger).bit_length() - 1
            places = self._free[size]
            place = places.pop()
            if not places:
                self._sizes &= ~(1 << size)
            if size > units:
                self.free(place + units, size - units)
            return place
        left = len(self._chunks) * CHUNK_UNITS - self._next
        if left < units:
            if left:
                self.free(self._next, left)
            self._next = len(self._chunks) * CHUNK_UNITS
            self._chunks.append(bytearray(CHUNK_UNITS * UNIT_BYTES))
        place = self._next
        self._next += units
        return place
