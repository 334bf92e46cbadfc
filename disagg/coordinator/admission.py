"""The bounded queue in front of the engines: who gets a pair now, who waits, and for how long.

Way:   coordinator -> [Admission.reserve] -> a Reservation: a pair counted as taken on its endpoints
In:    what a request needs; each change of the endpoints (one is ready, or has a place free) serves the queue again
Out:   a Reservation. First come, first served; requests that lost their pair midway go before those that had none
       yet, and suspects (suspects.py) before both to an engine that is idle, unless `others_first`; none is held up by
       them
Owns:  the waiting requests
Fails: Overloaded (429) when the queue is full, or the wait for room is over; NoReadyPair (503) when for `no_pair_s`
       there was no READY pair at all; DeadlineExceeded (504) at the request's own deadline. Overload and failure are
       told apart by the state of the endpoints alone, never by an error of an engine
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from disagg.coordinator.request import Request
from disagg.coordinator.suspects import alone_on, forgive
from disagg.errors import DeadlineExceeded, NoReadyPair, Overloaded
from disagg.routing.reservation import Reservation
from disagg.routing.router import Router
from disagg.routing.view import RoutingView


@dataclass(slots=True, eq=False)
class _Waiter:
    request: Request
    since_s: float
    until_s: float
    reservation: asyncio.Future[Reservation]
    timer: asyncio.TimerHandle | None = None


class Admission:
    """The requests of one frontend that wait for a pair, in order. Times are seconds of the clock `now_s`.

    `queue_max`: waiting requests; one more gets Overloaded at once. `queue_s`: the longest wait for room on READY
    engines; `no_pair_s`: the longest wait while there is no READY pair. `embeds`: of requests for vectors, which wait
    for engines of their own.
    """

    def __init__(
        self,
        router: Router,
        *,
        queue_max: int,
        queue_s: float,
        no_pair_s: float,
        now_s: Callable[[], float],
        embeds: bool = False,
    ) -> None:
        self._router, self._now_s, self._embeds = router, now_s, embeds
        self._queue_max, self._queue_s, self._no_pair_s = queue_max, queue_s, no_pair_s
        self._suspects: deque[_Waiter] = deque()
        self._first: deque[_Waiter] = deque()  # had a pair
        self._then: deque[_Waiter] = deque()
        self._lines = self._suspects, self._first, self._then
        self._unready_since_s: float | None = None
        self.others_first = False  # a suspect has killed its engine: those that wait since then go before the next one

    def __len__(self) -> int:
        return sum(map(len, self._lines))

    async def reserve(self, request: Request, until_s: float) -> Reservation:
        """Waits for a pair with room, until `until_s` at most. Raises Overloaded, NoReadyPair or DeadlineExceeded."""
        is_first = request.tries > 0
        line = self._first if is_first else self._then
        if request.blames and alone_on(request):
            line = self._suspects
        if not (line or (line is self._then and self._first)):
            reservation = self._pick(request, until_s)
            if reservation is not None:
                return reservation
        if not is_first and len(self._then) >= self._queue_max:
            raise Overloaded(f"request {request.id}", f"{len(self)} requests wait already", "retry later")
        waiter = _Waiter(request, request.waiting_since_s, until_s, asyncio.get_running_loop().create_future())
        line.append(waiter)
        self._note_readiness()
        self._set_timer(waiter)
        try:
            return await waiter.reservation
        except asyncio.CancelledError:
            reserved = waiter.reservation
            if reserved.done() and not reserved.cancelled() and reserved.exception() is None:
                reserved.result().release()  # it was served in the same turn of the loop
            raise
        finally:
            self._forget(waiter)

    def serve(self) -> None:
        """Called after each change: gives pairs to the requests that are first in line."""
        self._note_readiness()
        if not (self._suspects or self._first or self._then):
            self.others_first = False
            return
        self.others_first = self.others_first and bool(self._first or self._then)
        if not self.others_first:
            self._serve_suspects()
        self._serve_lines()
        if self.others_first:
            self._serve_suspects()

    def fail(self, request: Request, error: Exception) -> None:
        """Ends a request's wait, if it waits here."""
        for waiter in itertools.chain(*self._lines):
            if waiter.request is request and not waiter.reservation.done():
                waiter.reservation.set_exception(error)

    def _serve_suspects(self) -> None:
        """Gives a pair to each suspect for which an engine is idle; a request that was cleared joins the others."""
        for waiter in list(self._suspects):
            forgive(waiter.request, self._router.connections.is_lost)
            if not alone_on(waiter.request):
                self._suspects.remove(waiter)
                self._first.append(waiter)
            elif waiter.reservation.done():
                self._suspects.remove(waiter)
            elif (reservation := self._pick(waiter.request, waiter.until_s)) is not None:
                waiter.reservation.set_result(reservation)
                self._suspects.remove(waiter)

    def _serve_lines(self) -> None:
        for line in (self._first, self._then):
            while line:
                waiter = line[0]
                if not waiter.reservation.done():
                    reservation = self._pick(waiter.request, waiter.until_s)
                    if reservation is None:
                        return  # those behind it need not be tried: none may overtake
                    waiter.reservation.set_result(reservation)
                line.popleft()

    def _pick(self, request: Request, until_s: float) -> Reservation | None:
        reservation = self._router.pick(
            RoutingView(
                prompt_tokens=len(request.prompt_ids) + len(request.emitted_ids),
                new_tokens=request.tokens_left,
                prompt_ids=request.prompt_ids,
                emitted_ids=request.emitted_ids,
                deadline_s=until_s,
                prefix_on=request.prefix_on,
                adapter=request.adapter,
                avoid=request.failed_on,
                alone_on=alone_on(request) if request.blames else frozenset(),
                embeds=self._embeds,
            )
        )
        if reservation is not None:
            request.facts.routed = reservation.reason
        return reservation

    def _note_readiness(self) -> None:
        was_ready, is_ready = self._unready_since_s is None, self._router.is_ready(embeds=self._embeds)
        if was_ready != is_ready:
            self._unready_since_s = None if is_ready else self._now_s()
            for waiter in itertools.chain(*self._lines):
                self._set_timer(waiter)

    def _set_timer(self, waiter: _Waiter) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        wait_s = min(self._ends_at_s(waiter)) - self._now_s()
        waiter.timer = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._time_is_up, waiter)

    def _ends_at_s(self, waiter: _Waiter) -> tuple[float, float]:
        """(when a wait for room ends, when a wait for a READY pair ends)."""
        unready = self._unready_since_s
        no_pair_at_s = max(unready, waiter.since_s) + self._no_pair_s if unready is not None else float("inf")
        return min(waiter.since_s + self._queue_s, waiter.until_s), no_pair_at_s

    def _time_is_up(self, waiter: _Waiter) -> None:
        if waiter.reservation.done():
            return
        self._note_readiness()
        no_room_at_s, no_pair_at_s = self._ends_at_s(waiter)
        now_s, where = self._now_s() + 1e-3, f"request {waiter.request.id}"
        if now_s >= waiter.until_s:
            waiter.reservation.set_exception(DeadlineExceeded(where, "no end of the answer within deadlines.request_s"))
        elif now_s >= no_pair_at_s or (now_s >= no_room_at_s and self._unready_since_s is not None):
            waiter.reservation.set_exception(
                NoReadyPair(where, "no engines are ready to serve this", "try again shortly; see /disagg/status")
            )
        elif now_s >= no_room_at_s:
            what = f"no room for it within {self._now_s() - waiter.since_s:.1f} s"
            if waiter in self._suspects:
                what = f"an engine died under it, and there was {what} on one where nothing else runs"
            waiter.reservation.set_exception(Overloaded(where, what, "retry later"))
        else:
            self._set_timer(waiter)

    def _forget(self, waiter: _Waiter) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        for line in self._lines:
            if waiter in line:
                line.remove(waiter)
                self.serve()  # it may have held up who is next
