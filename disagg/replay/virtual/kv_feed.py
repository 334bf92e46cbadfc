"""What a simulated engine says of its KV, on its way to every frontend's index: gathered for a moment, as hosts do.

Way:   PrefixCache's events -> [KvFeed] -> LAG_S later -> PrefixIndex of each frontend, a slot a rank
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

from disagg.replay.virtual.clock import Clock
from disagg.routing.prefix_index.index import PrefixIndex

LAG_S = 0.022  # events are gathered for up to 20 ms, and take 1 to 2 from the scheduler to its host

Event = tuple[int, str, "array[int]", int, int]  # slot, kind, path, where it ends, how many of its last blocks


class KvFeed:
    """Of one engine. `indexes`: asked for at each delivery."""

    def __init__(self, clock: Clock, indexes: Callable[[], Iterable[PrefixIndex]]) -> None:
        self._clock, self._indexes = clock, indexes
        self._gathered: list[Event] = []

    def of(self, slot: int) -> Callable[[str, array[int], int, int], None]:
        """What the rank of this slot calls."""

        def on_event(kind: str, path: array[int], end: int, count: int) -> None:
            if not self._gathered:
                self._clock.after(LAG_S, self._deliver)
            self._gathered.append((slot, kind, path, end, count))

        return on_event

    def _deliver(self) -> None:
        events, self._gathered = self._gathered, []
        indexes = list(self._indexes())
        for slot, kind, path, end, count in events:
            meant = path[:end]
            for index in indexes:
                if kind == "stored":
                    index.store(slot, meant, new=count)
                else:
                    index.cut(slot, meant, end - count)
