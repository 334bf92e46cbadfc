"""By how much a way between two engines is slower or quicker for KV than ways are on average.

Way:   Costs.observe -> [Ways.note]; now and then [Ways.age]; a policy -> [Ways.of]
Symbols: f(p, d) = g(s) · h(p, d)
  s        the nearest kind of place that p and d share: a GPU, node, NVLink domain, rail, rack, or none (nearness.py)
  g(s)     how slow those ways are that share just that, learnt from each transfer on any of them; 1 until ways of two
           kinds have been measured, and within a factor of 1.15
  h(p, d)  how slow this way is among them; 1 until it has been measured, and within a factor of 1.5
Both fade towards 1 while they are not measured (factors.py): a way counts as its like do, and they as all ways do.
"""

from __future__ import annotations

from disagg.nearness import shared
from disagg.routing.cost.factors import Factors
from disagg.routing.endpoints import Engine

EVEN = 0.5  # transfers vary more than steps
KNOWN_MAX = 100_000  # incarnations come and go


class Ways:
    """`differ_by_place`: some that share one kind of place are known to be other than all are. `least`: no way is
    quicker, but for what was measured in the last moment."""

    def __init__(self) -> None:
        self.differ_by_place, self.least = False, 1.0
        self._own = Factors[tuple[str, str]](EVEN)  # engine ids; outlive incarnations
        self._alike = Factors[str]()
        self._kinds: set[str] = set()  # that have been measured
        self._known: dict[str, dict[str, str]] = {}  # what two lives share, of those that were asked for
        self._known_count = 0

    @property
    def differ(self) -> bool:
        return self.differ_by_place or bool(self._own.uneven)

    def of(self, sender: Engine, receiver: Engine) -> float:
        own = self._own.uneven.get((sender.id, receiver.id), 1.0) if self._own.uneven else 1.0
        if not self.differ_by_place:
            return own
        known = self._known.get(sender.life)
        if known is None:
            known = self._known[sender.life] = {}
        kind = known.get(receiver.life)
        if kind is None:
            if self._known_count >= KNOWN_MAX:
                self._known, self._known_count = {sender.life: (known := {})}, 0
            kind = known[receiver.life] = shared(sender.place, receiver.place)
            self._known_count += 1
        return own * self._alike.uneven.get(kind, 1.0)

    def note(self, way: tuple[str, str], kind: str, seconds: float, expected_s: float, now_s: float) -> None:
        """`kind`: what both engines share. `expected_s`: as ways are on average."""
        self._kinds.add(kind)
        self._alike.note(kind, seconds, expected_s, now_s)
        self._look_at_places()
        alike = self._alike.of(kind) if self.differ_by_place else 1.0
        self._own.note(way, seconds, expected_s * alike, now_s)
        self.least = min(self.least, alike * self._own.of(way))

    def age(self, now_s: float) -> None:
        self._own.age(now_s)
        self._alike.age(now_s)
        self._look_at_places()
        self.least = min(1.0, *self._own.uneven.values(), 1.0) * min(1.0, *self._alike.uneven.values(), 1.0)

    def _look_at_places(self) -> None:
        self.differ_by_place = len(self._kinds) > 1 and bool(self._alike.uneven)
