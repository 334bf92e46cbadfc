"""By how much each rank, or each way between two engines, is slower or quicker than the law that all have in common.

Way:   Costs.observe -> [Factors.note]; now and then [Factors.age]; a policy -> [Factors.of, Factors.uneven]
Owns:  a factor a rank. What is known of one that is not measured fades: no request goes to a rank that is believed to
       be slow, so nothing else would ever show that it no longer is
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

SMOOTHING = 0.1
SMOOTHING_MAX = 0.5  # of a measurement that comes after FADE_S * SMOOTHING_MAX without one
FADE_S = 60.0  # without a measurement, until a factor's logarithm counts as 1 / e of what it was
RANGE = 0.02, 50.0
OUTLIER = math.log(5.0)  # what is further from what was known counts as this: a machine that stood still is not slow
EVEN = 0.15
RANKS_MAX = 20_000  # incarnations come and go


class Factors(Generic[Key]):
    """Within `even` of 1 a factor is 1: no rank is to be preferred for the noise of measurements. Times are of one
    clock."""

    def __init__(self, even: float = EVEN) -> None:
        self._even = math.log(1 + even)
        self._seen: dict[Key, tuple[float, float]] = {}  # logarithm, when it was measured last
        self.uneven: dict[Key, float] = {}  # those that are not 1, as of the last `age`

    def of(self, rank: Key) -> float:
        return self.uneven.get(rank, 1.0)

    def note(self, rank: Key, seconds: float, expected_s: float, now_s: float) -> None:
        old, since_s = self._seen.get(rank, (0.0, now_s))
        share = min(SMOOTHING_MAX, max(SMOOTHING, (now_s - since_s) / FADE_S))
        seen = math.log(min(RANGE[1], max(RANGE[0], seconds / expected_s)))
        new = old + share * min(OUTLIER, max(-OUTLIER, seen - old))
        self._seen[rank] = new, now_s
        self._put(rank, new)
        if len(self._seen) > RANKS_MAX:
            gone = next(iter(self._seen))
            del self._seen[gone]
            self.uneven.pop(gone, None)

    def age(self, now_s: float) -> None:
        """For all that are uneven."""
        for rank in list(self.uneven):
            logarithm, since_s = self._seen[rank]
            self._put(rank, logarithm * math.exp((since_s - now_s) / FADE_S))

    def _put(self, rank: Key, logarithm: float) -> None:
        if abs(logarithm) > self._even:
            self.uneven[rank] = math.exp(logarithm)
        else:
            self.uneven.pop(rank, None)
