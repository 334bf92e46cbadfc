"""One try of one request on one pair (or one aggregated engine): both legs, one owner, one deadline at a time.

Way:   coordinator -> [Attempt] -> the two plane clients; decode's tokens come back, whichever leg fails first ends both
Owns:  the room and the places on both engines, from `start` until both legs have said their last word
Fails: `next_tokens` raises LegLost (a leg failed), EngineLost (with its engine), Refused (a host has no room),
       NotANumber, DeadlineExceeded or Cancelled, after every token that came before; `close` then aborts what runs
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from disagg.coordinator.request import Request
from disagg.coordinator.suspects import PROVEN_TOKENS, blame
from disagg.errors import Cancelled, DeadlineExceeded, EngineLost, LegLost, NotANumber, Refused, RequestError
from disagg.plane import messages as m
from disagg.plane.client import LOST
from disagg.roles import Role
from disagg.routing.endpoints import Endpoint, Pair

log = logging.getLogger(__name__)

LAST_WORD_S = 5.0  # after an abort or a normal end a leg has this long to say its last word
UNREAD_S = 1.0  # between two looks whether the client takes what is there
TIMER_SLACK_S = 1e-3  # a loop's timers are as coarse as this

Deadline = tuple[float, str, str]  # when (seconds), what must have come until then, the key of `deadlines` that says so


class _Leg:
    """The receiver of one leg's frames."""

    __slots__ = ("attempt", "end", "is_broken", "name", "number", "place", "received")

    def __init__(self, attempt: Attempt, name: str, place: Endpoint) -> None:
        self.attempt, self.name, self.place = attempt, name, place
        self.number = 0
        self.received = 0
        self.is_broken = False
        self.end: m.LegEnd | None = None

    def on_tokens(self, offset: int, token_ids: list[int]) -> None:
        if offset != self.received:
            self.is_broken = True
            self.attempt.fail(LegLost, f"{self.name} sent token {offset} after {self.received} tokens", self.place.life)
            return
        self.received = offset + len(token_ids)
        self.take(token_ids)

    def take(self, token_ids: list[int]) -> None:
        """A prefill's one token comes from its decode, too."""

    def on_stage(self, name: str) -> None:
        if self.name == "prefill" or not self.attempt.pair.prefill or name == "bootstrapping":
            self.attempt.on_stage(name)  # what a decode engine calls transferring is its wait for prefill, too

    def on_end(self, end: m.LegEnd) -> None:
        if self.is_broken:  # a good end does not make up for lost tokens
            end = msgspec.structs.replace(end, reason="error", detail="tokens were lost on the way")
        self.end = end
        self.attempt.leg_ended(self)


class _DecodeLeg(_Leg):
    """With its request it is all that a token on its way touches here: at hundreds of streams each object that has to
    be fetched from memory costs more than what is done with it."""

    __slots__ = ("due", "is_waited", "new_ids", "request")

    def __init__(self, attempt: Attempt, place: Endpoint, due: Due) -> None:
        super().__init__(attempt, "decode", place)
        self.request, self.due = attempt.request, due
        self.new_ids: list[int] | None = None
        self.is_waited = False  # `next_tokens` waits for these ids: they may go past it

    def take(self, token_ids: list[int]) -> None:
        if self.new_ids:
            self.new_ids += token_ids
            return
        self.new_ids = token_ids
        if self.request.output is None:
            self.attempt.wake()
        else:
            self.due.add(self)

    def hand_out(self, now_s: float) -> None:
        """The new ids go straight to the client where they can, else to `next_tokens`."""
        ids = self.new_ids
        if not self.is_waited or not ids:
            return
        self.new_ids = None
        try:
            if not self.request.put(ids, now_s):
                self.new_ids = ids
                self.attempt.wake()
            elif self.request.text.stopped:
                self.attempt.stop()
        except Exception:  # its own request's alone: others are handed out in the same turn
            log.exception("request %s: an error nobody foresaw", self.request.id)
            self.attempt.break_off()


class _LegOnTrial(_DecodeLeg):
    """Of a request that is tried alone (see suspects.py)."""

    __slots__ = ("on_proven",)

    def __init__(self, attempt: Attempt, place: Endpoint, due: Due, on_proven: Callable[[], None]) -> None:
        super().__init__(attempt, place, due)
        self.on_proven = on_proven

    def take(self, token_ids: list[int]) -> None:
        super().take(token_ids)
        if self.received >= PROVEN_TOKENS > self.received - len(token_ids):
            self.on_proven()


class Due:
    """Those that have tokens to hand out: all that one turn of the event loop brings a request, perhaps of many steps,
    is one piece and one write."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._legs: list[_DecodeLeg] = []

    def add(self, leg: _DecodeLeg) -> None:
        legs = self._legs
        if not legs:
            asyncio.get_running_loop().call_soon(self._hand_out)
        legs.append(leg)

    def _hand_out(self) -> None:
        legs, self._legs = self._legs, []
        now_s = self._now_s()
        for leg in legs:
            leg.hand_out(now_s)


class Attempt:
    """`due` collects its decode leg's tokens until all that this turn of the event loop read has been taken in.
    `on_stage(name)` is called as engines tell of their progress, until `close`; `on_leg_over(place)` once a leg,
    when it holds nothing on its engine (or did not answer an abort in time); `on_over` after the last of them.
    `deadline()` is the one that holds now. `on_proven`: for a request on trial, called once its engine has borne it.
    """

    def __init__(
        self,
        request: Request,
        pair: Pair,
        room: int,
        now_s: Callable[[], float],
        deadline: Callable[[], Deadline],
        due: Due,
        on_stage: Callable[[str], None],
        on_leg_over: Callable[[Endpoint], None],
        on_over: Callable[[], None],
        on_proven: Callable[[], None] | None = None,
    ) -> None:
        self.request, self.pair, self.room = request, pair, room
        self.on_stage = on_stage
        self._deadline = deadline
        self._now_s, self._on_leg_over, self._on_over = now_s, on_leg_over, on_over
        self._try = request.tries
        self.decode = (
            _LegOnTrial(self, pair.decode, due, on_proven) if on_proven else _DecodeLeg(self, pair.decode, due)
        )
        self._prefill = _Leg(self, "prefill", pair.prefill) if pair.prefill else None
        self._legs = [leg for leg in (self._prefill, self.decode) if leg is not None]
        self._is_stopped = False
        self._failure: RequestError | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._is_closed = False
        self._closing: asyncio.TimerHandle | None = None
        self._is_over = False

    def start(self) -> None:
        """Dispatches both legs at once: decode allocates while prefill queues."""
        request, prefill, decode = self.request, self.pair.prefill, self.pair.decode
        prompt = m.pack_ids(request.prompt_ids) + m.pack_ids(request.emitted_ids)
        bootstrap = None
        if prefill is not None:
            host, port = prefill.bootstrap.rsplit(":", 1)
            bootstrap = m.Bootstrap(host, int(port), self.room, prefill.dp_rank)
        request.facts |= {
            "room": self.room,
            "prefill": prefill.name if prefill else None,
            "decode": decode.name,
        }
        for leg in self._legs:
            tokens = 1 if leg is self._prefill else request.tokens_left
            leg.number = leg.place.client.submit(
                leg,
                leg_id=f"{request.id}{self._try:02x}",
                prompt=prompt,
                sampling=request.sampling | {"max_new_tokens": tokens},
                dp_rank=leg.place.dp_rank,
                bootstrap=bootstrap,
            )

    def watch_deadline(self) -> None:
        """To be called where the deadline may come earlier than the one before; the timer finds out a later one."""
        at_s = self._deadline()[0]
        if self._timer is None or at_s < self._timer_at_s:
            self._arm(at_s)

    async def next_tokens(self) -> tuple[list[int], str | None]:
        """New token ids in order, and the reason (stop or length) once decode has ended. None of either: see `stop`."""
        leg = self.decode
        while not (leg.new_ids or self._is_stopped) and leg.end is None and self._failure is None:
            self._waiting = asyncio.get_running_loop().create_future()
            leg.is_waited = True
            try:
                await self._waiting
            finally:
                leg.is_waited = False
        ids, leg.new_ids = leg.new_ids or [], None
        end = leg.end
        if end is not None and end.reason in m.WELL:
            return ids, end.reason
        if ids or self._is_stopped or self._failure is None:
            return ids, None
        raise self._failure

    def close(self) -> None:
        """Aborts what still runs. A prefill that has sent its KV ends by itself, and tells what it sent.

        From now on nothing that a leg says moves the request: it may have begun another try.
        """
        self._is_closed = True
        self.on_stage = lambda _name: None
        if self._timer is not None:
            self._timer.cancel()
        self._abort(*(leg for leg in self._legs if leg is self.decode or not self._has_kv))
        if not self._is_over and self._closing is None:
            self._closing = asyncio.get_running_loop().call_later(LAST_WORD_S, self._last_word_is_late)

    # called by the legs, the deadline, and whoever cancels

    def wake(self) -> None:
        """`next_tokens` looks again."""
        self.decode.is_waited = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def break_off(self) -> None:
        """For an error of ours that nobody foresaw."""
        self._failure = RequestError(f"request {self.request.id}", "internal error", "see the frontend's log")
        self.wake()

    def stop(self) -> None:
        """What came is all that is wanted: `next_tokens` returns."""
        self._is_stopped = True
        self.wake()

    def fail(self, as_error: type[RequestError], what: str, *lives: str) -> None:
        """The first failure counts; `next_tokens` raises it. `lives`: the engines that may be to blame."""
        if self._is_closed:
            return
        if self._failure is None or as_error is Cancelled:  # a cancelled request gets no other try
            self.request.failed_on.update(lives)
            would_do = "try other values" if as_error is NotANumber else "try again"
            self._failure = as_error(f"request {self.request.id} on {self.pair.name}", what, would_do)
            self.wake()

    def leg_ended(self, leg: _Leg) -> None:
        assert leg.end is not None
        reason = leg.end.reason
        self._note(leg, leg.end)
        if reason not in m.WELL and (leg is self.decode or not self._has_kv):
            what = f"the {leg.name} engine ended its leg: {leg.end.detail or reason}"
            if reason == m.REFUSED:
                self.fail(Refused, what)
                leg.place.on_refused()
            elif reason == m.NOT_A_NUMBER:  # of this request alone, on whichever engine: none is to blame
                self.fail(NotANumber, f"the model's output for this request is not a number ({leg.name})")
            elif reason == LOST:
                place = leg.place
                if not self._is_closed:
                    alone = place.client.legs_lost == 1 and place.load[0] <= 1  # ours, and all frontends' there
                    blame(self.request, place.life, self._role(leg), leg.received, alone)
                self.fail(EngineLost, what, place.life)
            else:
                self.fail(LegLost, what, leg.place.life)
            self._abort(*self._legs)  # SGLang tells neither side of the other's failure
        self.wake()
        if self._is_over:
            return
        self._on_leg_over(leg.place)
        if all(each.end is not None for each in self._legs):
            self._over()

    # inner

    def _arm(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = at_s
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at_s - self._now_s()), self._timer_came)

    def _timer_came(self) -> None:
        """A deadline that moved on meanwhile is waited for again: moving it costs no timer."""
        at_s, awaited, name = self._deadline()
        if self.decode.new_ids or self.decode.end is not None:
            self._arm(self._now_s() + UNREAD_S)  # the client is slow, not the engine
        elif self._now_s() < at_s - TIMER_SLACK_S:
            self._arm(at_s)
        else:
            lives = (place.life for place in self.pair.places)
            self.fail(DeadlineExceeded, f"no {awaited} within deadlines.{name}", *lives)

    def _role(self, leg: _Leg) -> Role:
        if leg is self._prefill:
            return Role.PREFILL
        return Role.DECODE if self._prefill else Role.AGGREGATED

    @property
    def _has_kv(self) -> bool:
        """Decode needs nothing more of its prefill."""
        return self.decode.received > 0

    def _abort(self, *legs: _Leg) -> None:
        for leg in legs:
            if leg.end is None:
                leg.place.client.abort(leg.number)

    def _last_word_is_late(self) -> None:
        silent = [leg.place.name for leg in self._legs if leg.end is None]
        log.warning("request %s: no last word from %s", self.request.id, silent)
        self._abort(*self._legs)
        self._over()

    def _over(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self._closing is not None:
                self._closing.cancel()
            for leg in self._legs:
                if leg.end is None:
                    self._on_leg_over(leg.place)
            self._on_over()

    def _note(self, leg: _Leg, end: m.LegEnd) -> None:
        """Brings a leg's times, in its host's clock, into the request's timeline, in ours."""
        if self._try != self.request.tries:
            return  # a late word on an earlier try
        request, stats = self.request, dict(end.stats)
        facts = request.facts
        if leg is not self.decode or self._prefill is None:
            facts["cached_tokens"] = end.cached_tokens
        if "kv_bytes" in stats:
            facts["kv_bytes"], facts["kv_transfer_s"] = int(stats.pop("kv_bytes")), stats.pop("kv_transfer_s", 0.0)
        here = {name: at_s - leg.place.client.clock_offset_s for name, at_s in stats.items()}
        if leg is self.decode and self._prefill is not None:
            return
        # What the engine measured takes the place of when we heard of it.
        moments = {"prefill_start": here.get("forward_start"), "prefill_end": here.get("forward_end")}
        if "transfer_end" in here:
            moments["transfer_start"] = here["transfer_end"] - facts.get("kv_transfer_s", 0.0)
            moments["transfer_end"] = here["transfer_end"]
        request.timeline |= {name: at_s for name, at_s in moments.items() if at_s is not None}
