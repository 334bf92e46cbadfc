"""One try of one request on one pair (or one aggregated engine): both legs, one owner.

Way:   coordinator -> [Attempt] -> the two plane clients; decode's tokens come back, whichever leg fails first ends both
Owns:  the room and the places on both engines, from `start` until both legs have said their last word
Fails: `next_tokens` raises LegLost (a leg failed) or DeadlineExceeded; `close` then aborts what still runs
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from disagg.coordinator.request import Request
from disagg.errors import DeadlineExceeded, LegLost, RequestError
from disagg.plane import messages as m

if TYPE_CHECKING:
    from disagg.routing.table import Place

log = logging.getLogger(__name__)

LAST_WORD_S = 5.0  # after an abort or a normal end a leg has this long to say its last word


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a request runs. `prefill` is None on an aggregated engine, which then is `decode`."""

    prefill: Place | None
    decode: Place


class _LegState:
    """The receiver of one leg's frames."""

    __slots__ = ("attempt", "end", "name", "number", "place", "received")

    def __init__(self, attempt: Attempt, name: str, place: Place) -> None:
        self.attempt, self.name, self.place = attempt, name, place
        self.number = 0
        self.received = 0
        self.end: m.LegEnd | None = None

    def on_tokens(self, offset: int, token_ids: list[int]) -> None:
        if offset != self.received:
            self.attempt.fail(f"{self.name} sent token {offset} after {self.received} tokens")
            return
        self.received += len(token_ids)
        if self.name == "decode":
            self.attempt.tokens_came(token_ids)

    def on_stage(self, name: str) -> None:
        pass

    def on_end(self, end: m.LegEnd) -> None:
        self.end = end
        self.attempt.leg_ended(self)


class Attempt:
    """`on_over` is called once, when both legs have ended (or did not answer an abort in time)."""

    def __init__(
        self, request: Request, pair: Pair, room: int, now_s: Callable[[], float], on_over: Callable[[], None]
    ) -> None:
        self.request, self.pair, self.room = request, pair, room
        self._now_s, self._on_over = now_s, on_over
        self._decode = _LegState(self, "decode", pair.decode)
        self._prefill = _LegState(self, "prefill", pair.prefill) if pair.prefill else None
        self._legs = [leg for leg in (self._prefill, self._decode) if leg is not None]
        self._new_ids: list[int] = []
        self._failure: RequestError | None = None
        self._woken = asyncio.Event()
        self._closing: asyncio.TimerHandle | None = None
        self._is_over = False

    def start(self) -> None:
        """Dispatches both legs at once: decode allocates while prefill queues."""
        request, prefill, decode = self.request, self.pair.prefill, self.pair.decode
        prompt = m.pack_ids(request.prompt_ids)
        bootstrap = None
        if prefill is not None:
            host, port = prefill.bootstrap.rsplit(":", 1)
            bootstrap = m.Bootstrap(host, int(port), self.room, prefill.dp_rank)
        for leg in self._legs:
            tokens = 1 if leg is self._prefill else request.max_tokens - len(request.emitted_ids)
            leg.number = leg.place.client.submit(
                leg,
                leg_id=request.id,
                prompt=prompt,
                sampling=request.sampling | {"max_new_tokens": tokens},
                dp_rank=leg.place.dp_rank,
                bootstrap=bootstrap,
            )
        request.facts |= {
            "room": self.room,
            "prefill": prefill.name if prefill else None,
            "decode": decode.name,
        }

    async def next_tokens(self, limit_s: float, waiting_for: str) -> tuple[list[int], str | None]:
        """New token ids in order, and the reason (stop or length) once decode has ended."""
        while not self._new_ids and self._decode.end is None and self._failure is None:
            self._woken.clear()
            try:
                async with asyncio.timeout(limit_s):
                    await self._woken.wait()
            except TimeoutError:
                where = f"request {self.request.id} on {self._names()}"
                raise DeadlineExceeded(where, f"no {waiting_for} within {limit_s:g} s", "try again") from None
        ids, self._new_ids = self._new_ids, []
        if self._failure is not None:
            raise self._failure
        end = self._decode.end
        return ids, end.reason if end is not None else None

    def close(self) -> None:
        """Aborts what still runs, unless decode ended well: then prefill, which has sent its KV, may end by itself."""
        ended_well = self._decode.end is not None and self._failure is None
        if not ended_well:
            self._abort()
        if not self._is_over and self._closing is None:
            self._closing = asyncio.get_running_loop().call_later(LAST_WORD_S, self._last_word_is_late)

    # called by the legs

    def tokens_came(self, token_ids: list[int]) -> None:
        self._new_ids += token_ids
        self._woken.set()

    def fail(self, what: str, as_error: type[RequestError] = LegLost) -> None:
        """The first failure counts; `next_tokens` raises it."""
        if self._failure is None:
            self._failure = as_error(f"request {self.request.id} on {self._names()}", what, "try again")
        self._woken.set()

    def leg_ended(self, leg: _LegState) -> None:
        assert leg.end is not None
        self._note(leg, leg.end)
        if leg.end.reason not in ("stop", "length"):
            self.fail(f"the {leg.name} engine ended its leg: {leg.end.detail or leg.end.reason}")
            self._abort()  # SGLang tells neither side of the other's failure
        self._woken.set()
        if all(each.end is not None for each in self._legs):
            self._over()

    # inner

    def _names(self) -> str:
        return " + ".join(leg.place.name for leg in self._legs)

    def _abort(self) -> None:
        for leg in self._legs:
            if leg.end is None:
                leg.place.client.abort(leg.number)

    def _last_word_is_late(self) -> None:
        silent = [leg.place.name for leg in self._legs if leg.end is None]
        log.warning("request %s: no last word from %s", self.request.id, silent)
        self._abort()
        self._over()

    def _over(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self._closing is not None:
                self._closing.cancel()
            self._on_over()

    def _note(self, leg: _LegState, end: m.LegEnd) -> None:
        """Brings a leg's times, in its host's clock, into the request's timeline, in ours."""
        request, stats = self.request, dict(end.stats)
        facts = request.facts
        if leg is not self._decode or self._prefill is None:
            facts["cached_tokens"] = end.cached_tokens
        if "kv_bytes" in stats:
            facts["kv_bytes"], facts["kv_transfer_s"] = int(stats.pop("kv_bytes")), stats.pop("kv_transfer_s", 0.0)
        here = {name: at_s - leg.place.client.clock_offset_s for name, at_s in stats.items()}
        if leg is self._decode and self._prefill is not None:
            return
        for name, moment in (("forward_start", "prefill_start"), ("forward_end", "prefill_end")):
            if name in here:
                request.mark(moment, here[name])
        if "transfer_end" in here:
            request.mark("transfer_start", here["transfer_end"] - facts.get("kv_transfer_s", 0.0))
            request.mark("transfer_end", here["transfer_end"])
