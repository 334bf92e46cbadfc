"""What a simulated engine says of its KV, on its way to every frontend's index: gathered for a moment, as hosts do.

Way:   PrefixCache's events -> [KvFeed] -> LAG_S later -> each frontend's index
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from disagg.replay.virtual.clock import Clock

LAG_S = 0.022  # events are gathered for up to 20 ms, and take 1 to 2 from the scheduler to its host


class KvEvent(NamedTuple):
    """The last `blocks` blocks of the path are new on this rank, or gone."""

    dp_rank: int
    is_stored: bool
    path: array[int]
    blocks: int


class KvFeed:
    """Of one engine. `deliver` gets what was gathered."""

    def __init__(self, clock: Clock, deliver: Callable[[Sequence[KvEvent]], None]) -> None:
        self._clock, self._deliver = clock, deliver
        self._gathered: list[tuple[int, bool, array[int], int, int]] = []

    def of(self, dp_rank: int) -> Callable[[bool, array[int], int, int], None]:
        """What this rank calls."""

        def on_event(is_stored: bool, path: array[int], end: int, count: int) -> None:
            if not self._gathered:
                self._clock.after(LAG_S, self._send)
            self._gathered.append((dp_rank, is_stored, path, end, count))

        return on_event

    def _send(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._deliver([KvEvent(rank, is_stored, path[:end], count) for rank, is_stored, path, end, count in gathered])
