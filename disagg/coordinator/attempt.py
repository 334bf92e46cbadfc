"""One try of one request on one pair (or one aggregated engine): both legs, one owner, one deadline at a time.

Way:   coordinator -> [Attempt] -> the two plane clients; decode's tokens come back and go to the sink as they come.
       Whichever leg fails first ends both
Owns:  the reservation (a place on each engine) and the room, until both legs have said their last word
Fails: `run` raises LegLost (a leg failed), EngineLost (with its engine), Refused (a host has no room), NotAccepted,
       NoAdapter, NotANumber, DeadlineExceeded or Cancelled, after every token that came before; what still runs is
       aborted
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from disagg.coordinator.deadlines import DeadlineTimer
from disagg.coordinator.legs import DecodeLeg, EmbeddingLeg, Leg, LegOnTrial, TokenBatch
from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import Event, Phase, advance, advance_to_stage
from disagg.coordinator.request import Request
from disagg.coordinator.rooms import Rooms
from disagg.coordinator.sink import Sink
from disagg.coordinator.suspects import alone_on, blame, clear
from disagg.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineLost,
    LegLost,
    NoAdapter,
    NotAccepted,
    NotANumber,
    Refused,
    RequestError,
)
from disagg.plane import messages as m
from disagg.plane.client import LOST
from disagg.plane.ledger import tokens_to_set_aside
from disagg.routing.endpoints import Pair
from disagg.routing.reservation import Reservation

log = logging.getLogger(__name__)

WOULD_DO = {NotANumber: "try other values", NotAccepted: "", NoAdapter: "see /v1/models"}
LAST_WORD_S = 5.0  # after an abort or a normal end a leg has this long to say its last word
HELD_S = 0.01  # a client that takes longer than this to take what is there is slow

# Looked up once: a member of an Enum's class costs 0.2 µs in Python 3.11.
_ADMITTED, _DISPATCHED, _FIRST_TOKEN, _FINISH = Event.ADMITTED, Event.DISPATCHED, Event.FIRST_TOKEN, Event.FINISH
_DECODING = Phase.DECODING


@dataclass(frozen=True, slots=True)
class Shared:
    """What all tries of one frontend share. `now_s`: the monotonic clock of every time of a request."""

    limits: Limits
    rooms: Rooms
    batch: TokenBatch
    now_s: Callable[[], float]


class Attempt:
    """One try: owns both legs, the room and the reservation, which it gives back.

    `request` is QUEUED or MIGRATING when the try begins. Times are seconds of `shared.now_s`.
    """

    def __init__(self, request: Request, sink: Sink, reservation: Reservation, shared: Shared) -> None:
        request.tries += 1
        self.request, self.reservation = request, reservation
        self._sink, self._shared, self._try = sink, shared, request.tries
        pair, prefill = reservation.pair, reservation.pair.prefill
        leg_class = LegOnTrial if request.blames and alone_on(request) else DecodeLeg
        if request.embeds:
            leg_class = EmbeddingLeg
        self.decode = leg_class(self, pair.decode, request, sink, shared.batch)
        self._legs = [Leg(self, prefill), self.decode] if prefill else [self.decode]
        self._deadline = DeadlineTimer(request, shared.limits, shared.now_s, self)
        self._failure: RequestError | None = None
        self._is_broken = False  # what comes now would follow a hole
        self._waiting: asyncio.Future[None] | None = None
        self.is_closed = False
        self.has_waited = False  # tokens were not handed out as they came: for a slow client, or for prefill's word
        self._closing: asyncio.TimerHandle | None = None
        self._is_over = False
        self.room = shared.rooms.take(prefill.dp_size, prefill.dp_rank) if prefill else shared.rooms.take(1, 0)

    @property
    def pair(self) -> Pair:
        return self.reservation.pair

    async def run(self) -> None:
        """Returns when the sink has the end of the answer. Raises what the module's `Fails:` lists."""
        try:
            self._start()
            await self._answer()
        finally:
            self.close()

    def _start(self) -> None:
        """Dispatches both legs at once: decode allocates while prefill queues."""
        request, prefill, now_s = self.request, self.pair.prefill, self._shared.now_s()
        advance(request, _ADMITTED, now_s)
        advance(request, _DISPATCHED, now_s)  # before: an engine on a busy machine may be quicker
        request.try_since_s = now_s
        prompt, leg_id = m.pack_ids(request.prompt_ids), f"{request.id}{self._try:02x}"
        request.begin_try(is_pair=prefill is not None)
        given, wanted = request.given, None
        if given is not None:
            given.drop_given()
            wanted = msgspec.structs.replace(given.wanted, emitted=len(request.emitted_ids))
        if request.emitted_ids:
            prompt += m.pack_ids(request.emitted_ids)
        bootstrap = None
        if prefill is not None:
            host, port = prefill.bootstrap.rsplit(":", 1)
            bootstrap = m.Bootstrap(host, int(port), self.room, prefill.dp_rank)
        asks = request.asks
        if asks and not request.lacks_prompt_logprobs:
            asks = {name: value for name, value in asks.items() if name != "logprob_start_len"}
        facts = request.facts
        facts.adapter = request.adapter or None
        facts.room, facts.prefill, facts.decode = self.room, prefill.id if prefill else None, self.pair.decode.id
        trace = request.trace
        parents = [""] * len(self._legs) if trace is None else trace.begin_try(self.pair, self.room)
        for leg, parent in zip(self._legs, parents, strict=True):
            tokens = leg.role.new_tokens(request.tokens_left)
            leg.number = leg.endpoint.client.submit(
                leg,
                leg_id=leg_id,
                prompt=prompt,
                sampling=request.sampling_of_a_leg(tokens),
                dp_rank=leg.endpoint.dp_rank,
                bootstrap=bootstrap,
                asks=leg.role.asks(asks),
                embeds=request.embeds,
                second_at=request.second_at,
                text=wanted,
                on_text=None if wanted is None else leg.on_text,
                adapter=request.adapter,
                salt=request.salt,
                to_read=self.reservation.to_read if leg.endpoint is self.pair.reader else 0,
                trace=parent,
            )
        self.decode.is_held = self.has_waited = request.lacks_prefills_word
        self._deadline.watch()

    async def _answer(self) -> None:
        """Waits while legs put tokens into the sink without this task. It is woken when the sink is full, and at the
        end."""
        leg, sink = self.decode, self._sink
        while True:
            reason = self._end_reason()
            lacks_word = self.request.lacks_prefills_word
            if self._failure is not None and (self._is_broken or lacks_word or (reason is None and not leg.unsent)):
                raise self._failure
            if lacks_word or (reason is None and not leg.unsent):
                leg.is_held = lacks_word
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting
                continue
            if not sink.is_open():
                leg.is_held, since_s = True, self._shared.now_s()
                await sink.opens()
                self.has_waited |= self._shared.now_s() - since_s > HELD_S
                reason = self._end_reason()
            if reason is not None:
                self._end(reason)
                return
            leg.is_held = False
            leg.hand_out(self._shared.now_s(), is_open=True)

    def _end_reason(self) -> str | None:
        """Why the answer ends with the tokens that came, or None. Also where the engine's last word was lost with
        it."""
        if self.request.text.stopped:
            return "stop"
        end = self.decode.end
        if end is not None and end.reason in m.WELL:
            return end.reason
        if isinstance(self._failure, LegLost | Refused | DeadlineExceeded) and not self.decode.unsent:
            return self.request.came_whole
        return None

    def _end(self, reason: str) -> None:
        request, leg, now_s = self.request, self.decode, self._shared.now_s()
        if request.phase is not _DECODING:
            self.on_first_token(now_s)
        ids = [] if request.text.stopped else leg.unsent or []  # none of the step after a stop string
        leg.unsent = None
        text, finish = request.finish(ids, reason, now_s)
        del request.logprobs[len(request.emitted_ids) :]  # of the step after a stop string
        advance(request, _FINISH, now_s)
        self._sink.end(text, ids, finish)

    def close(self) -> None:
        """Aborts what still runs. From now on nothing that a leg reports changes the request, which may have begun
        another try."""
        self.is_closed = self.decode.is_held = True
        self._deadline.cancel()
        self._abort()
        if not self._is_over and self._closing is None:
            self._closing = asyncio.get_running_loop().call_later(LAST_WORD_S, self._last_word_is_late)
        self._let_go()

    def fail(self, as_error: type[RequestError], what: str, *lives: str) -> None:
        """Notes the failure that `run` will raise: the first one, or a cancellation. `lives`: engines that may be to
        blame."""
        if self.is_closed:
            return
        if self._failure is None or as_error is Cancelled:  # a cancelled request gets no other try
            self.request.failed_on.update(lives)
            would_do = WOULD_DO.get(as_error, "try again")
            self._failure = as_error(f"request {self.request.id} on {self.pair.name}", what, would_do)
            # Not left to `run`, which may wait for a slow client. SGLang tells neither side of the other's failure.
            self._abort()
            self.wake()

    # Called by the legs and by the deadline's timer.

    def wake(self) -> None:
        self.decode.is_held = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def break_off(self, error: RequestError | None = None) -> None:
        self._is_broken = True
        unforeseen = RequestError(f"request {self.request.id}", "internal error", "see the frontend's log")
        self._failure = error or unforeseen
        self.wake()

    def on_stage(self, name: str, cached_tokens: int | None) -> None:
        if self.is_closed:
            return
        if cached_tokens is not None:  # prefill's end tells it too, but may come after a short answer
            self.request.facts.cached_tokens = cached_tokens
        if advance_to_stage(self.request, name, self._shared.now_s()):
            self._deadline.watch()
            if self.request.phase is Phase.TRANSFERRING:
                self.reservation.has_read()

    def on_token_bytes(self, token_bytes: dict[int, bytes]) -> None:
        if token_bytes and (given := self.request.given) is not None:
            given.give_bytes(token_bytes)

    def on_prompt_logprobs(self, logprobs: list[m.TokenLogprobs]) -> None:
        if not self.is_closed and self.request.lacks_prompt_logprobs:
            self.request.prompt_logprobs = logprobs
            self.wake()

    def on_prefills_token(self, logprobs: list[m.TokenLogprobs]) -> None:
        if not self.is_closed and self.request.first_chosen is None and logprobs:
            self.request.first_chosen = logprobs[0].chosen
            self.request.join_first_chosen()
            self.wake()

    def on_first_token(self, now_s: float) -> None:
        """Called at the first token of this try, or at its end if it had none."""
        request = self.request
        since_s, request.token_at_s = request.token_at_s, now_s
        advance(request, _FIRST_TOKEN, now_s)
        self._deadline.watch()
        self.reservation.has_read()
        if since_s:  # a migration: how long the client's stream stood still
            request.facts.pauses_ms += (round((now_s - since_s) * 1e3, 3),)

    def on_proven(self) -> None:
        clear(self.request)
        self.reservation.share()

    def on_leg_end(self, leg: Leg) -> None:
        assert leg.end is not None
        if self._try == self.request.tries:  # else it is a late word on an earlier try
            self.request.note_end(leg.end, leg.endpoint.client.clock_offset_s, read_prompt=leg.role.reads_prompts)
        lacks_word = leg.role.reads_prompts and self.request.lacks_prefills_word
        if leg.end.reason not in m.WELL and (leg is self.decode or lacks_word or not self._has_kv):
            self._on_leg_failed(leg, leg.end)
        elif lacks_word and self._try == self.request.tries:
            self.fail(LegLost, f"the {leg.role.name} engine did not send all logprobs", leg.endpoint.life)
        if leg is self.decode:
            self.wake()
        if self._is_over:
            return
        self.reservation.release_leg(leg.endpoint)
        if all(each.end is not None for each in self._legs):
            self._over()

    @property
    def waits_for_client(self) -> bool:
        has_news = bool(self.decode.unsent) or self.decode.end is not None
        return has_news and not self.request.lacks_prefills_word

    def on_late(self, awaited: str, name: str) -> None:
        lives = (endpoint.life for endpoint in self.pair.endpoints)
        self.fail(DeadlineExceeded, f"no {awaited} within deadlines.{name}", *lives)

    # inner

    def _on_leg_failed(self, leg: Leg, end: m.LegEnd) -> None:
        what, endpoint = f"the {leg.role.name} engine ended its leg: {end.detail or end.reason}", leg.endpoint
        if end.reason == m.REFUSED:
            self.fail(Refused, what)
            endpoint.on_refused(self._tokens_of(leg))
        elif end.reason == m.NO_ADAPTER:
            self.fail(NoAdapter, end.detail)
        elif end.reason == m.INVALID:
            self.fail(NotAccepted, end.detail)
        elif end.reason == m.NOT_A_NUMBER:  # of this request alone, on whichever engine: none is to blame
            self.fail(NotANumber, f"the model's output for this request is not a number ({leg.role.name})")
        elif end.reason == LOST:
            if not self.is_closed:
                # Ours, and all frontends' there.
                alone = endpoint.client.legs_lost == 1 and endpoint.requests_of_clients <= 1
                blame(self.request, endpoint.life, leg.role.name, leg.received, alone)
            self.fail(EngineLost, what, endpoint.life)
        else:
            self.fail(LegLost, what, endpoint.life)

    def _tokens_of(self, leg: Leg) -> int:
        request = self.request
        prompt_tokens = len(request.prompt_ids) + len(request.emitted_ids)
        return tokens_to_set_aside(prompt_tokens, leg.role.new_tokens(request.tokens_left))

    @property
    def _has_kv(self) -> bool:
        """Whether decode has all of the KV, and needs its prefill no more."""
        return self.decode.received > 0

    def _abort(self, *, all_legs: bool = False) -> None:
        """A prefill that has sent its KV ends by itself, and reports the bytes."""
        for leg in self._legs:
            if leg.end is None and (all_legs or leg is self.decode or not self._has_kv):
                leg.endpoint.client.abort(leg.number)

    def _last_word_is_late(self) -> None:
        silent = [leg.endpoint.name for leg in self._legs if leg.end is None]
        log.warning("request %s: no last word from %s", self.request.id, silent)
        self._abort(all_legs=True)
        self._over()

    def _over(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self._closing is not None:
                self._closing.cancel()
            self.reservation.release()
            self._shared.rooms.give_back(self.room)
            self._let_go()

    def _let_go(self) -> None:
        """Of what points back here, once nobody calls it any more: so a request is freed with its tokens when it ends,
        and the garbage collector, which stops every stream, finds nothing."""
        if self.is_closed and all(leg.end is not None for leg in self._legs):
            for leg in self._legs:
                del leg.attempt
            self._legs.clear()
            del self._deadline
