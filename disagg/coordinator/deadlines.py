"""Which deadline of a try comes first now, and the one timer that watches it.

Way:   Attempt -> [DeadlineTimer] -> Attempt, once a deadline is over
In:    the request's phase and times; the limits
Owns:  one timer a try. When the deadline moves later, as with each token, the timer is left alone: when it fires it
       sees that the deadline has moved, and is set again
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Request

UNREAD_S = 1.0  # between two checks whether the client reads what is there
TIMER_SLACK_S = 1e-3  # a loop's timers are as coarse as this

# Looked up once: a member of an Enum's class costs 0.2 µs in Python 3.11.
_DECODING = Phase.DECODING
_TRANSFERRING = Phase.TRANSFERRING
_PREFILLING = Phase.PREFILLING


def first_deadline(request: Request, limits: Limits) -> tuple[float, str, str]:
    """The earliest, of the phase, the try or the request: seconds, what must have happened by then, its key in the
    YAML's `deadlines`."""
    whole = request.received_at_s + limits.request_s, "end of the answer", "request_s"
    if request.phase is _DECODING:
        return min(whole, (request.token_at_s + limits.next_token_s, "next token", "next_token_s"))
    first_token = request.try_since_s + limits.first_token_s, "first token", "first_token_s"
    if request.phase is _TRANSFERRING:
        phase = request.phase_since_s + limits.transfer_s, "end of the KV transfer", "transfer_s"
    elif request.phase is _PREFILLING:
        phase = first_token
    else:
        phase = request.try_since_s + limits.bootstrap_s, "start of its prefill", "bootstrap_s"
    return min(whole, first_token, phase)


class Watched(Protocol):
    """The try that has the deadline."""

    @property
    def waits_for_client(self) -> bool:
        """Whether output waits for the client: then the client is slow, not the engine."""

    def on_late(self, awaited: str, name: str) -> None: ...


class DeadlineTimer:
    """Calls `watched.on_late` once, when a deadline is over that nothing has moved on; never after `cancel`."""

    def __init__(self, request: Request, limits: Limits, now_s: Callable[[], float], watched: Watched) -> None:
        self.request, self._limits, self._now_s, self._watched = request, limits, now_s, watched
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0

    def watch(self) -> None:
        """Call this when the deadline may have become earlier. A later one needs no call: the timer sees it."""
        at_s, _, _ = first_deadline(self.request, self._limits)
        if self._timer is None or at_s < self._timer_at_s:
            self._arm(at_s)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, at_s: float) -> None:
        self.cancel()
        self._timer_at_s = at_s
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at_s - self._now_s()), self._look)

    def _look(self) -> None:
        (at_s, awaited, name), now_s = first_deadline(self.request, self._limits), self._now_s()
        if self._watched.waits_for_client:
            self._arm(now_s + UNREAD_S)
        elif now_s < at_s - TIMER_SLACK_S:
            self._arm(at_s)
        else:
            self._watched.on_late(awaited, name)
