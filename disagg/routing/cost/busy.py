"""Which share of their time ranks have spent reading prompts, of late.

Way:   a host's report of what it read -> Costs.observe -> [Busy.note]; now and then [Busy.age]
Owns:  seconds by rank, those of long ago fading; a rank that tells nothing is idle, unless prompts lie before it
"""

from __future__ import annotations

from collections.abc import Set

from disagg.routing.endpoints import RankId

BUSY_S = 30.0  # over which it is seen
SILENT_S = 30.0  # a rank that has told nothing for so long, and has nothing to read, is idle
GONE_S = 300.0  # and after so long it counts no more: most are gone
RANKS_MAX = 20_000


class Busy:
    """Times are of one clock."""

    def __init__(self) -> None:
        self._ranks: dict[RankId, tuple[float, float, float]] = {}  # busy for s, of so many s; told last
        self._shares: dict[RankId, float] = {}
        self._sum = 0.0

    @property
    def mean(self) -> float:
        """Of all ranks that read prompts."""
        return max(0.0, self._sum / len(self._ranks)) if self._ranks else 0.0

    def of(self, rank: RankId) -> float:
        return self._shares.get(rank, 0.0)

    def note(self, rank: RankId, seconds: float, over_s: float, now_s: float) -> None:
        busy_s, of_s, _ = self._ranks.get(rank, (0.0, 0.0, 0.0))
        fades = BUSY_S / (BUSY_S + over_s)
        busy_s, of_s = busy_s * fades + seconds, of_s * fades + over_s
        self._ranks[rank] = busy_s, of_s, now_s
        self._put(rank, min(1.0, busy_s / of_s))
        if len(self._ranks) > RANKS_MAX:
            self._forget(next(iter(self._ranks)))

    def age(self, now_s: float, reading: Set[RankId] = frozenset()) -> None:
        """`reading`: ranks before which prompts lie. Of a long one nothing is told until it is read."""
        for rank, (busy_s, of_s, told_s) in list(self._ranks.items()):
            silent_s = now_s - told_s
            if rank in reading:
                fades = BUSY_S / (BUSY_S + silent_s)
                self._put(rank, min(1.0, (busy_s * fades + silent_s) / (of_s * fades + silent_s)))
            elif silent_s > GONE_S:
                self._forget(rank)
            elif silent_s > SILENT_S and rank in self._shares:
                self._put(rank, 0.0)

    def _put(self, rank: RankId, share: float) -> None:
        self._sum += share - self._shares.pop(rank, 0.0)
        if share:
            self._shares[rank] = share

    def _forget(self, rank: RankId) -> None:
        self._put(rank, 0.0)
        del self._ranks[rank]
