"""The bounded queue in front of the engines: who gets a pair now, who waits, and for how long.

Way:   coordinator -> [Admission.reserve] -> a Reservation: a pair counted as taken on its endpoints
In:    what a request needs; each change of the endpoints (one is ready, or has a place free) serves the queue again
Out:   a Reservation. Higher priorities first, within one fair to keys (fair_line.py), within a key first come, first
       served. Requests that lost their pair midway go before those that had none yet, and suspects (suspects.py) before
       both to an engine that is idle, unless `others_first`; none is held up by them
Owns:  the waiting requests
Fails: Overloaded (429) when the queue is full, the wait for room is over, or the first token would come later than the
       client has use for it; NoReadyPair (503) when for `no_pair_s` there was no READY pair at all; DeadlineExceeded
       (504) at the request's own deadline. Overload and failure are told apart by the state of the endpoints alone,
       never by an error of an engine

Where the policy holds back (`Router.holds_back`), a request whose turn it is waits here until less than
`read_ahead_tokens` lie unread before its engine; meanwhile it is *bound* there, which later ones see, and it is looked
at anew with each change: so a queue in an engine is never long, and whoever comes later may still go first. One of a
priority above others is looked at each time, so that none of those goes where it would now go.
A request for which there is no room lets smaller ones pass, until these had as many tokens as it needs itself.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from disagg.coordinator.fair_line import FairLine
from disagg.coordinator.request import Request
from disagg.coordinator.suspects import alone_on, forgive
from disagg.errors import DeadlineExceeded, NoReadyPair, Overloaded
from disagg.plane.ledger import tokens_to_set_aside
from disagg.roles import Role
from disagg.routing.endpoints import UNBOUNDED, Endpoint
from disagg.routing.reservation import Reservation
from disagg.routing.router import Router
from disagg.routing.view import Choice, RoutingView
from disagg.token_ids import packed

LOOK_AHEAD = 64  # of the waiting requests so many are gone through with each change
ALL_S = 0.05  # and once in so long all, of which as many are considered: else those that stay bound would hide the rest
FRESH_S = 0.05  # for so long a bound request of the least priority stays bound without another look
PROBE_S = 1.0  # between two requests that go to an idle pair though they are expected to be late
# With one chunk alone a rank would begin its next one with whatever had come by then: measured on two H200, 12 to 17 %
# fewer tokens a second where prompts are much shorter than a chunk.
READ_AHEAD_CHUNKS, READ_AHEAD_LEAST = 2, 4096  # tokens
RENEWED = 4  # bound requests that are looked at anew with a change, though their engine is busy


@dataclass(slots=True, eq=False)
class _Waiter:
    request: Request
    view: RoutingView
    since_s: float
    until_s: float
    reservation: asyncio.Future[Reservation]
    timer: asyncio.TimerHandle | None = None
    passed_by: int = 0  # tokens of requests that went before it because there was no room for it
    bound_to: Endpoint | None = None
    to_read: int = 0  # there
    looked_at_s: float = 0.0

    @property
    def tokens(self) -> int:
        """The room that it needs at the most. Not its longest answer: most clients leave that to the model's context,
        and would all count as equally big."""
        return tokens_to_set_aside(self.view.prompt_tokens, self.view.new_tokens)


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
        read_ahead_tokens: int | None = None,
        embeds: bool = False,
    ) -> None:
        self._router, self._now_s, self._embeds = router, now_s, embeds
        self._queue_max, self._queue_s, self._no_pair_s = queue_max, queue_s, no_pair_s
        self._read_ahead_tokens, self._holds_back = read_ahead_tokens, router.holds_back and not embeds
        self._suspects: deque[_Waiter] = deque()
        self._first: deque[_Waiter] = deque()  # had a pair
        self._then: FairLine[_Waiter] = FairLine()
        self._bound: set[Endpoint] = set()  # where waiting requests are bound
        self._is_due = False
        self._all_at_s = 0.0  # all are gone through again
        self._all_later: asyncio.TimerHandle | None = None
        self._unready_since_s: float | None = None
        self._probe_at_s: float | None = None  # None: nobody has been refused by an idle pair
        self.others_first = False  # a suspect has killed its engine: those that wait since then go before the next one

    def __len__(self) -> int:
        return len(self._suspects) + len(self._first) + len(self._then)

    def _waiters(self) -> Iterator[_Waiter]:
        return itertools.chain(list(self._suspects), list(self._first), self._then)

    async def reserve(self, request: Request, until_s: float) -> Reservation:
        """Waits for a pair with room, until `until_s` at most. Raises Overloaded, NoReadyPair or DeadlineExceeded."""
        is_first, is_suspect = request.tries > 0, bool(request.blames and alone_on(request))
        view: RoutingView | None = None
        if not (self._suspects if is_suspect else self._first or (self._then and not is_first)):
            view = self._view(request, until_s)
            choice = self._consider(request, view)
            if choice is not None and self._may_read(choice.pair.reader):
                return self._reserve(request, view, choice)
        if not is_first and len(self._then) >= self._queue_max:
            raise Overloaded(f"request {request.id}", f"{len(self)} requests wait already", "retry later")
        view = view or self._view(request, until_s)  # not before: a long prompt has many blocks to be hashed
        until_s = min(until_s, self._of_use_until_s(request))
        waiter = _Waiter(request, view, request.waiting_since_s, until_s, asyncio.get_running_loop().create_future())
        if is_suspect:
            self._suspects.append(waiter)
        elif is_first:
            self._first.append(waiter)
        else:
            self._then.add(waiter, request.owner, self._router.unread_tokens(view), request.wishes.priority)
        self._note_readiness()
        self._set_timer(waiter)
        self.serve()
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
        """Called after each change: gives pairs to the requests whose turn it is, once in this turn of the loop."""
        self._note_readiness()
        if not len(self):
            self.others_first = False
            self._unbind()
        elif not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._is_due = False
        self.others_first = self.others_first and bool(self._first or self._then)
        reach = self._reach()
        if not self.others_first:
            self._serve_suspects(reach)
        self._serve_lines(reach)
        if self.others_first:
            self._serve_suspects(reach)

    def fail(self, request: Request, error: Exception) -> None:
        """Ends a request's wait, if it waits here."""
        for waiter in self._waiters():
            if waiter.request is request and not waiter.reservation.done():
                waiter.reservation.set_exception(error)

    def _reach(self) -> int:
        """How many of each line are gone through now."""
        if len(self) <= LOOK_AHEAD:
            return LOOK_AHEAD
        now_s = self._now_s()
        if now_s < self._all_at_s:
            self._look_at_all_later()
            return LOOK_AHEAD
        self._all_at_s = now_s + ALL_S
        return len(self)

    def _look_at_all_later(self) -> None:
        def look() -> None:
            self._all_later = None
            self.serve()

        if self._all_later is None:
            wait_s = max(0.0, self._all_at_s - self._now_s())
            self._all_later = asyncio.get_running_loop().call_later(wait_s, look)

    def _serve_suspects(self, reach: int) -> None:
        """Gives a pair to each suspect for which an engine is idle; a request that was cleared joins the others."""
        none_is_idle: dict[frozenset[Role], int] = {}  # by where they are to be alone: for whoever needs so many tokens
        for waiter in list(itertools.islice(self._suspects, reach)):
            request = waiter.request
            forgive(request, self._router.connections.is_lost)
            roles = alone_on(request)
            if not roles:
                self._suspects.remove(waiter)
                waiter.view = self._view(request, waiter.until_s)
                self._first.append(waiter)
            elif waiter.reservation.done():
                self._suspects.remove(waiter)
            elif waiter.tokens < none_is_idle.get(roles, UNBOUNDED):
                waiter.view = self._view(request, waiter.until_s)
                if (choice := self._try(waiter)) is not None:
                    waiter.reservation.set_result(self._reserve(request, waiter.view, choice))
                    self._suspects.remove(waiter)
                elif not waiter.reservation.done():
                    none_is_idle[roles] = waiter.tokens

    def _serve_lines(self, reach: int) -> None:
        self._unbind()  # while this goes on, each endpoint has what is bound there by those before in line
        no_room_from = UNBOUNDED  # tokens: whoever needs so many has no room either
        stuck: list[tuple[_Waiter, int]] = []  # with what had been admitted before
        now_s, renewed, considered, admitted_tokens = self._now_s(), 0, 0, 0
        least_priority = self._then.least_priority
        for waiter in itertools.islice(itertools.chain(list(self._first), self._then), reach):
            if waiter.reservation.done():
                self._take_out(waiter)
                continue
            if waiter.bound_to is not None and not self._may_read(waiter.bound_to):
                is_fresh = now_s - waiter.looked_at_s < FRESH_S and waiter.view.priority <= least_priority
                if is_fresh or renewed >= RENEWED:
                    self._bind(waiter, waiter.bound_to)
                    continue
                renewed += 1
            tokens, choice = waiter.tokens, None
            if tokens < no_room_from:
                if considered >= LOOK_AHEAD:
                    self._look_at_all_later()
                    break
                considered += 1
                choice = self._try(waiter)
            waiter.looked_at_s, waiter.bound_to = now_s, None
            if waiter.reservation.done():
                continue
            if choice is None:
                if waiter.passed_by >= tokens:
                    break
                no_room_from = min(no_room_from, tokens)
                stuck.append((waiter, admitted_tokens))
            elif not self._may_read(choice.pair.reader):
                waiter.to_read = max(1, waiter.view.prompt_tokens - choice.cached_tokens)
                self._bind(waiter, choice.pair.reader)
            else:
                waiter.reservation.set_result(self._reserve(waiter.request, waiter.view, choice))
                self._take_out(waiter)
                admitted_tokens += tokens
        for waiter, before in stuck:
            waiter.passed_by += admitted_tokens - before

    def _try(self, waiter: _Waiter) -> Choice | None:
        try:
            return self._consider(waiter.request, waiter.view)
        except Overloaded as error:
            waiter.reservation.set_exception(error)
            return None

    def _view(self, request: Request, until_s: float) -> RoutingView:
        tokens = len(request.prompt_ids) + len(request.emitted_ids)
        if request.path_tokens != tokens and not self._embeds:
            ids = request.prompt_ids
            if request.emitted_ids:
                ids = packed(ids) + packed(request.emitted_ids)
            request.path = self._router.path(ids, request.adapter, request.salt)
            request.path_tokens = tokens
        return RoutingView(
            prompt_tokens=tokens,
            new_tokens=request.tokens_left,
            prompt_ids=request.prompt_ids,
            emitted_ids=request.emitted_ids,
            path=request.path,
            expected_tokens=_expected_tokens(request),
            deadline_s=until_s,
            priority=request.wishes.priority,
            session=request.wishes.session,
            prefix_on=request.prefix_on,
            adapter=request.adapter,
            salt=request.salt,
            avoid=request.failed_on,
            alone_on=alone_on(request) if request.blames else frozenset(),
            embeds=self._embeds,
        )

    def _consider(self, request: Request, view: RoutingView) -> Choice | None:
        """Where it would go now; to where it is read soonest, if elsewhere its first token would come too late. Raises
        Overloaded if there too."""
        choice = self._router.consider(view)
        wishes = request.wishes
        if choice is None or not (wishes.ttft_s or wishes.tpot_s) or request.emitted_ids:
            return choice
        expected = self._router.forecast(choice)
        if expected is None:
            return choice
        where = f"request {request.id}"
        ttft_s = self._now_s() - request.received_at_s + expected.ttft_s
        is_late = bool(wishes.ttft_s) and ttft_s > wishes.ttft_s
        is_slow = bool(wishes.tpot_s) and expected.itl_s > wishes.tpot_s
        if is_late and not view.hurries:
            return self._consider(request, msgspec.structs.replace(view, hurries=True))
        if (is_late or is_slow) and self._is_measured_anew(choice):
            return choice
        if is_late:
            what = f"the first token would come after {ttft_s:.3f} s, and is of use until {wishes.ttft_s:g} s"
            raise Overloaded(where, what, f"retry later, or allow {ttft_s * 1e3:.0f} ms")
        if is_slow:
            what = f"a token would take {expected.itl_s * 1e3:.1f} ms, and may take {wishes.tpot_s * 1e3:g} ms"
            raise Overloaded(where, what, "retry later, or allow that")
        return choice

    def _is_measured_anew(self, choice: Choice) -> bool:
        """Nothing runs there from which one could learn that it is quicker than expected: then one request in PROBE_S
        goes, whatever is expected. Else who asks for more would be refused for ever."""
        if any(endpoint.requests_of_clients or endpoint.queued_tokens for endpoint in choice.pair.endpoints):
            return False
        now_s = self._now_s()
        is_due = self._probe_at_s is not None and now_s >= self._probe_at_s
        if is_due or self._probe_at_s is None:
            self._probe_at_s = now_s + PROBE_S
        return is_due

    def _of_use_until_s(self, request: Request) -> float:
        wanted_s = request.wishes.ttft_s
        return request.received_at_s + wanted_s if wanted_s and not request.emitted_ids else float("inf")

    def _may_read(self, endpoint: Endpoint) -> bool:
        """Whether a prompt may be sent there now; one that is gone is not worth waiting for."""
        if not self._holds_back or endpoint.order is None:
            return True
        limit = self._read_ahead_tokens or max(READ_AHEAD_LEAST, READ_AHEAD_CHUNKS * endpoint.chunk_tokens)
        return endpoint.sent_tokens < limit

    def _unbind(self) -> None:
        for endpoint in self._bound:
            endpoint.bound = 0
        self._bound.clear()

    def _bind(self, waiter: _Waiter, reader: Endpoint) -> None:
        waiter.bound_to = reader
        reader.bound += waiter.to_read
        self._bound.add(reader)

    def _reserve(self, request: Request, view: RoutingView, choice: Choice) -> Reservation:
        reservation = self._router.endpoints.reserve(choice, view)
        request.facts.routed = reservation.reason
        return reservation

    def _take_out(self, waiter: _Waiter) -> None:
        if waiter in self._then:
            self._then.serve(waiter)
        elif waiter in self._first:
            self._first.remove(waiter)

    def _note_readiness(self) -> None:
        was_ready, is_ready = self._unready_since_s is None, self._router.is_ready(embeds=self._embeds)
        if was_ready != is_ready:
            self._unready_since_s = None if is_ready else self._now_s()
            for waiter in self._waiters():
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
        if now_s >= self._of_use_until_s(waiter.request):
            what = f"no first token within {waiter.request.wishes.ttft_s:g} s, after which it is of no use"
            waiter.reservation.set_exception(Overloaded(where, what, "retry later"))
        elif now_s >= waiter.until_s:
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
        for line in (self._suspects, self._first, self._then):
            if waiter in line:
                line.remove(waiter)
                self.serve()  # it may have held up who is next


def _expected_tokens(request: Request) -> int:
    """Of the rest of its answer, as the client says: no more than may come. 0: it says nothing that still holds."""
    said = request.wishes.output_tokens - len(request.emitted_ids)
    return max(0, min(said, request.tokens_left))
