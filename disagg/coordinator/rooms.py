"""Bootstrap rooms: the numbers under which the two legs of a request meet.

Owns:  the set of live rooms of this process. A room is given back exactly once
"""

from __future__ import annotations

from random import Random

ROOM_BITS = 63  # SGLang keeps it in 64 bits, on some devices signed


class Rooms:
    def __init__(self, random: Random) -> None:
        self._random = random
        self._live: set[int] = set()

    def __len__(self) -> int:
        return len(self._live)

    def take(self, prefill_dp_size: int, prefill_dp_rank: int) -> int:
        """A room that no live request has, never 0, congruent to the rank: right whichever field SGLang reads."""
        while True:
            start = self._random.getrandbits(ROOM_BITS)
            room = start - start % prefill_dp_size + prefill_dp_rank
            # SGLang takes room 0 for "metadata has not landed yet", so a finished transfer would never count.
            if 0 < room < 1 << ROOM_BITS and room not in self._live:
                self._live.add(room)
                return room

    def give_back(self, room: int) -> None:
        self._live.remove(room)  # KeyError: given back twice, which is a bug
