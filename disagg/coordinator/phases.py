"""The life of a request: one table, one door.

Way:   the coordinator calls `advance` at each event; nothing else changes a request's phase
Out:   the new phase; the request's timeline is the by-product
Fails: IllegalTransition, which is a bug, and changes nothing

A try is what happens from RESERVED on. When it fails, a request without a token goes back to QUEUED (a retry), one with
tokens to MIGRATING, which is a queue too, served first; from there a new try begins on another pair.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from disagg.errors import RequestError


class Phase(Enum):
    QUEUED = auto()  # waits for a pair with room
    RESERVED = auto()  # holds a room and a place on each engine
    DISPATCHED = auto()  # both legs are on their way to the engines
    BOOTSTRAPPING = auto()  # the engines find each other, set KV aside; the prompt waits for its turn
    PREFILLING = auto()
    TRANSFERRING = auto()  # the prompt is read, its KV moves
    DECODING = auto()  # a token of this try has come
    MIGRATING = auto()  # has tokens, has lost its pair, waits for another one
    FINISHED = auto()
    FAILED = auto()
    CANCELLED = auto()

    __hash__ = object.__hash__  # in C; Enum's own is a call of Python, and each event of a request looks up two


class Event(Enum):
    """The value is its name in a request's timeline."""

    ADMITTED = "admitted"  # to a pair
    DISPATCHED = "dispatched"
    BOOTSTRAP = "bootstrap_start"
    PREFILL = "prefill_start"
    TRANSFER = "transfer_start"
    FIRST_TOKEN = "first_token"  # of this try
    FINISH = "finish"
    RETRY = "retry"  # refused, or lost before the first token
    MIGRATE = "migrate"  # refused, or lost after it
    CLIENT_GONE = "client_gone"
    FAILURE = "failure"

    __hash__ = object.__hash__


_P, _E = Phase, Event
_TRY = (_P.RESERVED, _P.DISPATCHED, _P.BOOTSTRAPPING, _P.PREFILLING, _P.TRANSFERRING, _P.DECODING)
STAGES = {"bootstrapping": _E.BOOTSTRAP, "prefilling": _E.PREFILL, "transferring": _E.TRANSFER}  # as engines tell them

NEXT: dict[tuple[Phase, Event], Phase] = {
    (_P.QUEUED, _E.ADMITTED): _P.RESERVED,
    (_P.MIGRATING, _E.ADMITTED): _P.RESERVED,
    (_P.RESERVED, _E.DISPATCHED): _P.DISPATCHED,
    (_P.DECODING, _E.FINISH): _P.FINISHED,
}
# Engines tell of stages over two connections, and may leave one out: each leads on from any earlier one.
for _place, (_event, _phase) in enumerate(
    [(_E.BOOTSTRAP, _P.BOOTSTRAPPING), (_E.PREFILL, _P.PREFILLING), (_E.TRANSFER, _P.TRANSFERRING)], start=2
):
    NEXT |= {(_before, _event): _phase for _before in _TRY[1:_place]}
NEXT |= {(_before, _E.FIRST_TOKEN): _P.DECODING for _before in _TRY[1:5]}
LIVE = frozenset(phase for phase, _ in NEXT)
_NAMES = {event: event.value for event in Event}
NEXT |= {(phase, _E.RETRY): _P.QUEUED for phase in _TRY[:5]}
NEXT |= {(phase, _E.MIGRATE): _P.MIGRATING for phase in _TRY}
NEXT |= {(phase, _E.CLIENT_GONE): _P.CANCELLED for phase in LIVE}
NEXT |= {(phase, _E.FAILURE): _P.FAILED for phase in LIVE}


class IllegalTransition(RequestError):
    code = "internal_error"


class HasPhase(Protocol):
    id: str
    phase: Phase
    phase_since_s: float

    def mark(self, name: str, at_s: float) -> None: ...


def advance(request: HasPhase, event: Event, now_s: float) -> None:
    """The only place that sets `request.phase`."""
    following = NEXT.get((request.phase, event))
    if following is None:
        raise IllegalTransition(f"request {request.id}", f"{event.name} in {request.phase.name}", "report this bug")
    request.phase, request.phase_since_s = following, now_s
    request.mark(_NAMES[event], now_s)


def advance_to_stage(request: HasPhase, stage: str, now_s: float) -> bool:
    """Called for a stage that an engine reports. A late one, after a later stage or a token, changes nothing."""
    event = STAGES.get(stage)
    if event is None or (request.phase, event) not in NEXT:
        return False
    advance(request, event, now_s)
    return True
