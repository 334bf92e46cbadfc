"""What a soak has shown: its faults, the ends of its requests, and the rule that did not hold, if one did not.

Way:   Campaign, Referee -> [Outcome], which grows while they run -> report, shrink
"""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg.coordinator.phases import Phase
from disagg.simulation.faults import Fault


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault on one request, when it came to `phase` for the `nth` time."""

    index: int
    fault: Fault
    phase: Phase
    nth: int


@dataclass(slots=True)
class Violation:
    what: str
    at_s: float
    index: int = -1  # of the request it was seen on
    timeline: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        of = f" (request {self.index})" if self.index >= 0 else ""
        return "\n  ".join([f"{self.what}{of}, at {self.at_s:.3f} s", *self.timeline])


@dataclass(slots=True)
class Outcome:
    """`violation`: the first one, with which a soak ends. The same seed gives the same hash of all events."""

    seed: int
    requests: int
    violation: Violation | None = None
    strikes: list[Strike] = field(default_factory=list)
    event_count: int = 0
    event_hash: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)  # how often each end of a request came
    virtual_s: float = 0.0
    live_max: int = 0  # requests at once
    policy: str = ""
