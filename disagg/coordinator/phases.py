"""The life of a request: one table, one door.

Way:   the coordinator calls `advance` at each event; nothing else changes a request's phase
Out:   the new phase; the request's timeline is the by-product
Fails: IllegalTransition, which is a bug, and changes nothing
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from disagg.errors import RequestError


class Phase(Enum):
    QUEUED = auto()  # waits for a pair
    PAIRED = auto()  # holds a room and a place on each engine
    PREFILL = auto()  # both legs are dispatched; bootstrap, prefill and KV transfer happen in the engines
    DECODE = auto()  # a token has come
    FINISHED = auto()
    FAILED = auto()
    CANCELLED = auto()


class Event(Enum):
    ADMITTED = auto()
    DISPATCHED = auto()
    FIRST_TOKEN = auto()
    FINISH = auto()
    CLIENT_GONE = auto()
    FAILURE = auto()  # a leg was lost, a deadline passed, no pair came


_P, _E = Phase, Event
NEXT: dict[tuple[Phase, Event], Phase] = {
    (_P.QUEUED, _E.ADMITTED): _P.PAIRED,
    (_P.PAIRED, _E.DISPATCHED): _P.PREFILL,
    (_P.PREFILL, _E.FIRST_TOKEN): _P.DECODE,
    (_P.DECODE, _E.FINISH): _P.FINISHED,
}
LIVE = frozenset(phase for phase, _ in NEXT)
NEXT |= {(phase, _E.CLIENT_GONE): _P.CANCELLED for phase in LIVE}
NEXT |= {(phase, _E.FAILURE): _P.FAILED for phase in LIVE}


class IllegalTransition(RequestError):
    code = "internal_error"


class HasPhase(Protocol):
    id: str
    phase: Phase

    def mark(self, name: str, at_s: float) -> None: ...


def advance(request: HasPhase, event: Event, now_s: float) -> None:
    """The only place that sets `request.phase`."""
    following = NEXT.get((request.phase, event))
    if following is None:
        raise IllegalTransition(f"request {request.id}", f"{event.name} in {request.phase.name}", "report this bug")
    request.phase = following
    request.mark(event.name.lower(), now_s)
