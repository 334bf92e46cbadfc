"""The life of a request in a frontend: a pair, a room, two legs, one output, one end; more than one try of it.

Way:   HTTP handler -> [Coordinator.run] -> Admission -> Attempt -> the sink that the handler gave
Owns:  live requests, live rooms, and a bounded memory of ended requests for timelines
Fails: Overloaded, NoReadyPair, LegLost, SuspectedPoison, DeadlineExceeded, Cancelled, each marked in the timeline;
       a cancellation of `run` is the client's leaving. A lost leg is retried on another pair before the first token,
       and migrates after it
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from random import Random

from disagg.coordinator.admission import Admission
from disagg.coordinator.attempt import Attempt, Shared
from disagg.coordinator.facts import Failure, LostTry
from disagg.coordinator.legs import TokenBatch
from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import LIVE, Event, Phase, advance
from disagg.coordinator.remembered import Remembered
from disagg.coordinator.request import Request
from disagg.coordinator.rooms import Rooms
from disagg.coordinator.sink import Sink
from disagg.coordinator.suspects import forgive, is_guilty
from disagg.errors import Cancelled, DeadlineExceeded, EngineLost, LegLost, Refused, RequestError, SuspectedPoison
from disagg.routing.endpoints import Pair
from disagg.routing.observations import Answered, Transferred
from disagg.routing.router import Router

log = logging.getLogger(__name__)

LOST_TRIES_MAX = 16  # of any request, also of a bystander, whose retries and migrations a death does not count against
STEPS_MIN = 8  # an answer of fewer tokens says little of a decode step
REMEMBERED = 10_000  # ended requests whose timeline can still be asked for


class Coordinator:
    """All requests of one frontend process: those that run, by id, and the timelines of the last REMEMBERED ones.

    `limits`: retries, migrations and deadlines in seconds; `now_s`: the monotonic clock of all times of a request;
    `random`: for room numbers.
    """

    def __init__(
        self,
        router: Router,
        limits: Limits,
        random: Random | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router, self._limits, self._now_s = router, limits, now_s
        self.admission, self.embedding_admission = (self._admission(embeds=embeds) for embeds in (False, True))
        router.endpoints.on_change = self._serve
        self.rooms = Rooms(random or Random())
        self.live: dict[str, Request] = {}
        self.attempts: dict[str, Attempt] = {}  # the running try of each live request
        self._shared = Shared(limits, self.rooms, TokenBatch(now_s), now_s)
        self._ended: OrderedDict[str, Remembered] = OrderedDict()
        self.on_transfer_lost: Callable[[str, str], None] = lambda _prefill, _decode: None  # lives
        self.on_lost_try: Callable[[Request, Pair], None] = lambda _request, _pair: None
        router.connections.on_evict = self._evict

    async def run(self, request: Request, sink: Sink) -> None:
        """Returns when the sink has the end of the answer. Cancelling this aborts both legs.

        Raises Cancelled when `cancel` ended the request, SuspectedPoison when engines died under it, and what Admission
        and the last try raised: Overloaded, NoReadyPair, LegLost, NotAccepted, NotANumber, DeadlineExceeded.
        """
        self.live[request.id] = request
        request.phase_since_s = request.waiting_since_s = self._now_s()
        try:
            while request.phase is not Phase.FINISHED:
                until_s = request.received_at_s + self._limits.request_s
                reservation = await self._admission_of(request).reserve(request, until_s)
                if request.is_cancelled:
                    reservation.release()
                    raise Cancelled(f"request {request.id}", "cancelled on request")
                attempt = self.attempts[request.id] = Attempt(request, sink, reservation, self._shared)
                try:
                    await attempt.run()
                    if self._router.learns and not request.embeds:
                        self._tell(request, attempt)
                except (LegLost, Refused, DeadlineExceeded) as error:
                    self._try_again(request, reservation.pair, error, sink)
                finally:
                    self.attempts.pop(request.id)
        except BaseException as error:
            if isinstance(error, RequestError):
                request.facts.error = Failure(type(error).__name__, error.message, error.where)
                log.warning("%s", error)  # it names the request
            if request.phase in LIVE:
                is_gone = isinstance(error, Cancelled | asyncio.CancelledError)
                advance(request, Event.CLIENT_GONE if is_gone else Event.FAILURE, self._now_s())
            raise
        finally:
            del self.live[request.id]
            ended = self._ended[request.id] = request.remembered()
            if request.trace is not None:
                request.trace.ended = ended
            while len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    def cancel(self, request_id: str) -> bool:
        """Ends a live request, in whatever phase, with `Cancelled`; False if there is none."""
        request, attempt = self.live.get(request_id), self.attempts.get(request_id)
        if request is None:
            return False
        request.is_cancelled = True
        if attempt is not None:
            attempt.fail(Cancelled, "cancelled on request")
        else:
            self._admission_of(request).fail(request, Cancelled(f"request {request_id}", "cancelled on request"))
        return True

    def find(self, request_id: str) -> Request | Remembered | None:
        return self.live.get(request_id) or self._ended.get(request_id)

    def ended(self) -> Iterable[Remembered]:
        """Those that are remembered, the newest first."""
        return reversed(self._ended.values())

    @property
    def waiting(self) -> int:
        """Requests that have no pair."""
        return len(self.admission) + len(self.embedding_admission)

    def _admission(self, *, embeds: bool) -> Admission:
        limits = self._limits
        return Admission(
            self._router,
            queue_max=limits.queue_max,
            queue_s=limits.queue_s,
            no_pair_s=limits.no_pair_s,
            now_s=self._now_s,
            read_ahead_tokens=limits.read_ahead_tokens,
            embeds=embeds,
        )

    def _admission_of(self, request: Request) -> Admission:
        """Who waits for a vector holds up nobody who waits for tokens."""
        return self.embedding_admission if request.embeds else self.admission

    def _serve(self) -> None:
        self.admission.serve()
        self.embedding_admission.serve()

    def _try_again(self, request: Request, pair: Pair, error: LegLost | Refused | DeadlineExceeded, sink: Sink) -> None:
        """Sends the request back to wait for another pair, or raises the error. What cannot go on elsewhere begins
        anew where nobody has heard of it."""
        limits, emitted = self._limits, len(request.emitted_ids)
        again = Event.MIGRATE if emitted else Event.RETRY
        if isinstance(error, Refused):  # by a live engine that is full: no failure, and not counted as one
            advance(request, again, self._now_s())
            return
        if request.phase is Phase.TRANSFERRING and pair.prefill is not None and not isinstance(error, EngineLost):
            self.on_transfer_lost(pair.prefill.life, pair.decode.life)
        request.waiting_since_s = self._now_s()
        is_blamed = isinstance(error, EngineLost) and self._is_blamed(request, pair)
        is_bystander = isinstance(error, EngineLost) and not (is_blamed and request.blames[-1].alone)
        request.facts.lost_tries += (LostTry(pair.name, emitted, error.what, is_bystander),)
        self.on_lost_try(request, pair)
        lost = request.facts.lost_tries
        counted = [each for each in lost if not each.bystander and bool(each.after_tokens) == bool(emitted)]
        limit = limits.migration_limit if emitted else limits.retry_limit
        is_allowed = 0 < limit >= len(counted) and len(lost) <= LOST_TRIES_MAX
        if is_blamed and (is_guilty(request) or (not is_allowed and len(request.blames) > 1)):
            raise self._poison(request, error.where) from error
        if emitted and is_allowed:
            is_allowed = len(request.prompt_ids) + emitted <= limits.migration_tokens_max
            if is_allowed and (why := request.why_it_stays):
                if sink.forgets():
                    request.begin_anew()
                else:
                    error.what += f" ({why})"
                    is_allowed = False
        if not is_allowed:
            raise error
        advance(request, again, self._now_s())
        log.warning("%s; now another try", error)

    def _is_blamed(self, request: Request, pair: Pair) -> bool:
        """Whether the loss of this pair is held against the request."""
        forgive(request, self._router.connections.is_lost)
        lives = {endpoint.life for endpoint in pair.endpoints}
        return any(each.life in lives for each in request.blames)

    def _poison(self, request: Request, where: str) -> SuspectedPoison:
        self._admission_of(request).others_first = True
        died = request.facts.died_under_it = tuple(each.life for each in request.blames)
        last = ", the last one with nothing else on it" if request.blames[-1].alone else ""
        what = f"{len(died)} engines died while they ran this request{last}"
        would_do = "it gets no further try: do not send it again as it is, and tell the operators its id"
        return SuspectedPoison(where, what, would_do)

    def _tell(self, request: Request, attempt: Attempt) -> None:
        """What this answer teaches the policy. The pace of tokens that waited here is not that of their engine."""
        reservation, facts, emitted = attempt.reservation, request.facts, len(request.emitted_ids)
        pair = reservation.pair
        self._router.observe(Answered(len(request.prompt_ids), emitted, request.max_tokens))
        if pair.prefill is not None and facts.kv_bytes is not None:
            moved = len(request.prompt_ids), facts.kv_bytes, facts.kv_transfer_s or 0.0
            self._router.observe(Transferred(pair.prefill.id, pair.decode.id, *moved, pair.shared))
        stood_s = 0.0 if pair.prefill is not None else facts.stood_s  # None: nobody knows what else its engine did
        if emitted >= STEPS_MIN and request.tries == 1 and stood_s is not None and not attempt.has_waited:
            took_s = request.token_at_s - request.timeline["first_token"] - stood_s
            self._router.observe(reservation.stepped(len(request.prompt_ids), took_s / (emitted - 1)))

    def _evict(self, life: str) -> None:
        """The engine `life` drains, and has waited long enough: its requests that can migrate are moved."""
        for attempt in list(self.attempts.values()):
            request = attempt.request
            is_there = any(endpoint.life == life for endpoint in attempt.pair.endpoints)
            if is_there and (request.can_migrate or not request.emitted_ids):
                attempt.fail(LegLost, "the engine is being drained", life)
