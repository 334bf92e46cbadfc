"""What a request notes for its trace beside its timeline, and whom its engines' own spans are children of.

Way:   frontend, telemetry/traces/tracer.py -> [RequestTrace] -> Attempt, phases; telemetry/traces/tree.py at the end
Owns:  the moments of every try: a timeline keeps the first of each name. A request has none of it where traces are off
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from disagg.coordinator.remembered import Remembered
from disagg.routing.endpoints import Pair

SPAN_BYTES = 8


def new_span_id() -> str:
    return os.urandom(SPAN_BYTES).hex()


def traceparent(trace_id: str, span_id: str, *, is_sampled: bool) -> str:
    """As W3C writes it."""
    return f"00-{trace_id}-{span_id}-{'01' if is_sampled else '00'}"


@dataclass(slots=True)
class TryTrace:
    """One try: its ranks, and the span of each leg. `prefill`: empty on an aggregated engine."""

    prefill: str
    decode: str
    room: int
    spans: Sequence[str]  # of the legs, prefill's first


@dataclass(slots=True)
class RequestTrace:
    """`span_id`: of the request. Where it is not sampled nothing is noted, and engines hear that it is not."""

    trace_id: str
    is_sampled: bool
    span_id: str = field(default_factory=new_span_id)
    moments: list[tuple[str, float]] = field(default_factory=list)  # as they came, with their repetitions
    tries: list[TryTrace] = field(default_factory=list)
    ended: Remembered | None = None

    def note(self, name: str, at_s: float) -> None:
        if self.is_sampled:
            self.moments.append((name, at_s))

    def begin_try(self, pair: Pair, room: int) -> list[str]:
        """The traceparent of each leg, prefill's first."""
        legs = len(pair.endpoints)
        if not self.is_sampled:
            return [traceparent(self.trace_id, self.span_id, is_sampled=False)] * legs
        spans = [new_span_id() for _ in range(legs)]
        prefill = str(pair.prefill.id) if pair.prefill else ""
        self.tries.append(TryTrace(prefill, str(pair.decode.id), room, spans))
        return [traceparent(self.trace_id, span, is_sampled=True) for span in spans]
