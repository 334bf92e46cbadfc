"""The life of a request in a frontend: a pair, a room, two legs, a stream of pieces, one end; more than one try of it.

Way:   HTTP handler -> [Coordinator.generate] -> Admission -> Attempt -> pieces back to the handler
Owns:  live requests, live rooms, and a bounded memory of ended requests for timelines
Fails: Overloaded, NoReadyPair, LegLost, SuspectedPoison, DeadlineExceeded, Cancelled, each marked in the timeline;
       closing the generator is a cancellation. A lost leg is retried on another pair before the first token, and
       migrates after it
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from random import Random

from disagg.coordinator.admission import Admission
from disagg.coordinator.attempt import Attempt, Deadline, Due
from disagg.coordinator.phases import LIVE, Event, Phase, advance, advance_to_stage
from disagg.coordinator.request import FinishReason, Piece, Remembered, Request
from disagg.coordinator.rooms import Rooms
from disagg.coordinator.suspects import alone_on, clear, forgive, is_guilty
from disagg.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineLost,
    LegLost,
    Refused,
    RequestError,
    SuspectedPoison,
)
from disagg.routing.endpoints import Pair
from disagg.routing.reservation import Reservation
from disagg.routing.table import EngineTable

log = logging.getLogger(__name__)

LOST_TRIES_MAX = 16  # also of a bystander, whose limits engines' deaths do not use up
REMEMBERED = 10_000  # ended requests whose timeline can still be asked for


@dataclass(frozen=True, slots=True)
class Limits:
    """See `deadlines` (seconds) and `routing` in the YAML."""

    no_pair_s: float = 10.0
    queue_s: float = 30.0
    bootstrap_s: float = 60.0
    first_token_s: float = 120.0
    transfer_s: float = 30.0
    next_token_s: float = 60.0
    request_s: float = 1800.0
    queue_max: int = 1024
    retry_limit: int = 3
    migration_limit: int = 3
    migration_tokens_max: int = 1 << 30


class Coordinator:
    def __init__(
        self,
        table: EngineTable,
        limits: Limits,
        random: Random | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table, self._limits, self._now_s = table, limits, now_s
        self.admission = Admission(
            table, queue_max=limits.queue_max, queue_s=limits.queue_s, no_pair_s=limits.no_pair_s, now_s=now_s
        )
        self.rooms = Rooms(random or Random())
        self.live: dict[str, Request] = {}
        self.attempts: dict[str, Attempt] = {}  # the running try of each live request
        self._due = Due(now_s)
        self._ended: OrderedDict[str, Remembered] = OrderedDict()
        table.on_evict = self._evict

    async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yields pieces; the last one has a finish reason. Closing it early aborts both legs."""
        self.live[request.id] = request
        request.phase_since_s = request.waiting_since_s = self._now_s()
        try:
            while request.phase is not Phase.FINISHED:
                reservation = await self.admission.reserve(request, request.received_at_s + self._limits.request_s)
                if request.is_cancelled:
                    reservation.release()
                    raise Cancelled(f"request {request.id}", "cancelled on request")
                try:
                    async with contextlib.aclosing(self._try(request, reservation)) as pieces:
                        async for piece in pieces:
                            yield piece
                except (LegLost, Refused, DeadlineExceeded) as error:
                    if reason := request.came_whole:
                        advance(request, Event.FINISH, self._now_s())
                        yield _emit(request, [], reason)
                        return
                    self._try_again(request, reservation.pair, error)
        except RequestError as error:
            request.facts["error"] = {"type": type(error).__name__, "message": error.message, "where": error.where}
            log.warning("%s", error)  # it names the request
            if request.phase in LIVE:
                event = Event.CLIENT_GONE if isinstance(error, Cancelled) else Event.FAILURE
                advance(request, event, self._now_s())
            raise
        except (GeneratorExit, asyncio.CancelledError):
            if request.phase in LIVE:
                advance(request, Event.CLIENT_GONE, self._now_s())
            raise
        except Exception:
            if request.phase in LIVE:
                advance(request, Event.FAILURE, self._now_s())
            raise
        finally:
            del self.live[request.id]
            self._ended[request.id] = request.remembered()
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
            self.admission.fail(request, Cancelled(f"request {request_id}", "cancelled on request"))
        return True

    def find(self, request_id: str) -> Request | Remembered | None:
        return self.live.get(request_id) or self._ended.get(request_id)

    async def _try(self, request: Request, reservation: Reservation) -> AsyncGenerator[Piece, None]:
        """One try on a pair that is reserved, from the room to the last piece."""
        prefill = reservation.pair.prefill
        room = self.rooms.take(prefill.dp_size, prefill.dp_rank) if prefill else self.rooms.take(1, 0)

        def over() -> None:
            self.rooms.give_back(room)

        def stage(name: str) -> None:
            if advance_to_stage(request, name, self._now_s()):
                attempt.watch_deadline()

        is_on_trial = bool(request.blames) and bool(alone_on(request))

        def proven() -> None:
            clear(request)
            reservation.share()

        def deadline() -> Deadline:
            return self._deadline(request)

        request.tries += 1
        attempt = self.attempts[request.id] = Attempt(
            request,
            reservation.pair,
            room,
            self._now_s,
            deadline,
            self._due,
            stage,
            reservation.release_leg,
            over,
            proven if is_on_trial else None,
        )
        try:
            advance(request, Event.ADMITTED, self._now_s())
            advance(request, Event.DISPATCHED, self._now_s())  # before: an engine on a busy machine may be quicker
            request.try_since_s = request.phase_since_s
            attempt.start()
            attempt.watch_deadline()
            while True:
                ids, reason = await attempt.next_tokens()
                since_s, request.token_at_s = request.token_at_s, self._now_s()
                if request.phase is not Phase.DECODING:  # the first token of this try, or an end without any
                    advance(request, Event.FIRST_TOKEN, request.token_at_s)
                    attempt.watch_deadline()
                    if since_s:  # a migration: how long the client's stream stood still
                        pause_ms = round((request.token_at_s - since_s) * 1e3, 3)
                        request.facts.setdefault("pauses_ms", []).append(pause_ms)
                piece = _emit(request, ids, reason)
                if piece.finish_reason is not None:
                    advance(request, Event.FINISH, self._now_s())
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            del self.attempts[request.id]
            attempt.close()

    def _try_again(self, request: Request, pair: Pair, error: LegLost | Refused | DeadlineExceeded) -> None:
        """Sends the request back to wait for another pair, or raises the error."""
        limits, emitted = self._limits, len(request.emitted_ids)
        again = Event.MIGRATE if emitted else Event.RETRY
        if isinstance(error, Refused):  # by a live engine that is full: no failure, and not counted as one
            advance(request, again, self._now_s())
            return
        request.waiting_since_s = self._now_s()
        is_blamed = isinstance(error, EngineLost) and self._is_blamed(request, pair)
        is_bystander = isinstance(error, EngineLost) and not (is_blamed and request.blames[-1].alone)
        lost = request.facts.setdefault("lost_tries", [])
        lost.append({"on": pair.name, "after_tokens": emitted, "why": error.what, "bystander": is_bystander})
        counted = [each for each in lost if not each["bystander"] and bool(each["after_tokens"]) == bool(emitted)]
        limit = limits.migration_limit if emitted else limits.retry_limit
        is_allowed = 0 < limit >= len(counted) and len(lost) <= LOST_TRIES_MAX
        if is_blamed and (is_guilty(request) or (not is_allowed and len(request.blames) > 1)):
            raise self._poison(request, error.where) from error
        if emitted and is_allowed:
            is_allowed = len(request.prompt_ids) + emitted <= limits.migration_tokens_max
            if is_allowed and not request.can_migrate:
                error.what += " (its penalties count the tokens so far: another engine cannot go on)"
                is_allowed = False
        if not is_allowed:
            raise error
        advance(request, again, self._now_s())
        log.warning("%s; now another try", error)

    def _is_blamed(self, request: Request, pair: Pair) -> bool:
        """Whether the loss of this pair is held against the request."""
        forgive(request, self._table.is_lost)
        lives = {place.life for place in pair.places}
        return any(each.life in lives for each in request.blames)

    def _poison(self, request: Request, where: str) -> SuspectedPoison:
        self.admission.others_first = True
        died = request.facts["died_under_it"] = [each.life for each in request.blames]
        last = ", the last one with nothing else on it" if request.blames[-1].alone else ""
        what = f"{len(died)} engines died while they ran this request{last}"
        would_do = "it gets no further try: do not send it again as it is, and tell the operators its id"
        return SuspectedPoison(where, what, would_do)

    def _deadline(self, request: Request) -> Deadline:
        """The phase's, the try's or the request's: whichever comes first."""
        limits = self._limits
        whole = (request.received_at_s + limits.request_s, "end of the answer", "request_s")
        if request.phase is Phase.DECODING:
            return min(whole, (request.token_at_s + limits.next_token_s, "next token", "next_token_s"))
        first_token = (request.try_since_s + limits.first_token_s, "first token", "first_token_s")
        if request.phase is Phase.TRANSFERRING:
            phase = (request.phase_since_s + limits.transfer_s, "end of the KV transfer", "transfer_s")
        elif request.phase is Phase.PREFILLING:
            phase = first_token
        else:
            phase = (request.try_since_s + limits.bootstrap_s, "start of its prefill", "bootstrap_s")
        return min(whole, first_token, phase)

    def _evict(self, life: str) -> None:
        """An engine that drains has waited long enough: what can migrate leaves it."""
        for attempt in list(self.attempts.values()):
            request = attempt.request
            is_there = any(place.life == life for place in attempt.pair.places)
            if is_there and (request.can_migrate or not request.emitted_ids):
                attempt.fail(LegLost, "the engine is being drained", life)


def _emit(request: Request, ids: list[int], reason: str | None) -> Piece:
    if request.text.stopped:
        ids = []  # of the step after the one that completed a stop string
    request.emitted_ids += ids
    text = request.text.push(ids) if ids else ""
    if reason is not None and not request.text.stopped:
        text += request.text.flush()
    finish: FinishReason | None = None
    if request.text.stopped or reason == "stop":
        finish = "stop"
    elif reason == "length":
        finish = "length"
    return Piece(text, ids, finish)
