"""One line in the log, every few seconds in which a frontend had something to do: what goes on.

Way:   Service, at each request's end -> [Pulse] -> the frontend's log
In:    requests that have ended, and those that live
Cost:  some 1 µs a request, and at each line one look at the requests that live
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Request
from disagg.telemetry.quantile import quantile

PULSE_S = 10.0
FIRST_TOKENS_MAX = 10_000  # of a line: its percentiles are of these, the first ones


class Pulse:
    """`name`: what its lines begin with; `live`: this frontend's requests; `queued()`: how many of them wait for a
    pair."""

    def __init__(
        self,
        name: str,
        live: Mapping[str, Request],
        queued: Callable[[], int],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = logging.getLogger(name)
        self._live, self._queued, self._now_s = live, queued, now_s
        self._since_s = now_s()
        self._tokens = 0  # of all requests that have ended, since this process began
        self._told_tokens = 0  # with those of requests that lived, when the last line was due
        self._begin()

    def _begin(self) -> None:
        self._answers = self._failed = self._cancelled = self._prompt_tokens = 0
        self._first_tokens_s: list[float] = []

    def ended(self, request: Request) -> None:
        """Counts a request, however it ended."""
        self._answers += request.phase is Phase.FINISHED
        self._failed += request.phase is Phase.FAILED
        self._cancelled += request.phase is Phase.CANCELLED
        self._prompt_tokens += len(request.prompt_ids)
        self._tokens += len(request.emitted_ids)
        first_s = request.timeline.get("first_token")
        if first_s is not None and len(self._first_tokens_s) < FIRST_TOKENS_MAX:
            self._first_tokens_s.append(first_s - request.received_at_s)

    def line(self) -> str:
        """What went on since the last one; "" where nothing did."""
        now_s = self._now_s()
        took_s, self._since_s = now_s - self._since_s, now_s
        tokens = self._tokens + sum(len(request.emitted_ids) for request in self._live.values())
        made, self._told_tokens = tokens - self._told_tokens, tokens
        parts = [f"{self._answers} answers"]
        parts += [f"{self._failed} failed"] * bool(self._failed) + [f"{self._cancelled} cancelled"] * bool(
            self._cancelled
        )
        said = f"in {took_s:.0f} s {', '.join(parts)}"
        said += f"; {self._prompt_tokens / took_s:,.0f} tokens/s read, {made / took_s:,.0f} made"
        if first := sorted(self._first_tokens_s):
            said += f"; first token p50 {quantile(first, 0.5):.3g} s, p99 {quantile(first, 0.99):.3g} s"
        waiting = self._queued()
        said += f"; now {len(self._live) - waiting} run" + f", {waiting} wait" * bool(waiting)
        is_quiet = not (self._answers or self._failed or self._cancelled or self._live)
        self._begin()
        return "" if is_quiet else said

    async def beat(self, every_s: float = PULSE_S) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(every_s)
            if said := self.line():
                self._log.info("%s", said)
