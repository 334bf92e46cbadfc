"""The life of a request in a frontend: a pair, a room, two legs, a stream of pieces, one end.

Way:   HTTP handler -> [Coordinator.generate] -> admission -> Attempt -> pieces back to the handler
Owns:  live requests, live rooms, and a bounded memory of ended requests for timelines
Fails: NoReadyPair, LegLost, DeadlineExceeded, each marked in the timeline; closing the generator is a cancellation
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

from disagg.coordinator.attempt import Attempt, Pair
from disagg.coordinator.phases import LIVE, Event, Phase, advance
from disagg.coordinator.request import FinishReason, Piece, Request
from disagg.coordinator.rooms import Rooms
from disagg.errors import Cancelled, NoReadyPair, RequestError
from disagg.routing.table import EngineTable

log = logging.getLogger(__name__)

REMEMBERED = 10_000  # ended requests whose timeline can still be asked for


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds; see `deadlines` in the YAML."""

    no_pair_s: float = 10.0
    first_token_s: float = 120.0
    next_token_s: float = 60.0
    request_s: float = 1800.0


class Coordinator:
    def __init__(
        self,
        table: EngineTable,
        limits: Limits,
        random: Random | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table, self._limits, self._now_s = table, limits, now_s
        self.rooms = Rooms(random or Random())
        self.live: dict[str, Request] = {}
        self._attempts: dict[str, Attempt] = {}
        self._ended: OrderedDict[str, Request] = OrderedDict()

    async def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yields pieces; the last one has a finish reason. Closing it early aborts both legs."""
        self.live[request.id] = request
        try:
            pair = await self._pair(request)
            async with contextlib.aclosing(self.run(request, pair, lambda: self._table.release(pair))) as pieces:
                async for piece in pieces:
                    yield piece
        except RequestError as error:
            request.facts["error"] = {"type": type(error).__name__, "message": error.message, "where": error.where}
            log.warning("request %s failed: %s", request.id, error)
            if request.phase in LIVE:
                advance(request, Event.FAILURE, self._now_s())
            raise
        except (GeneratorExit, asyncio.CancelledError):
            if request.phase in LIVE:
                advance(request, Event.CLIENT_GONE, self._now_s())
            raise
        finally:
            del self.live[request.id]
            self._ended[request.id] = request
            while len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    async def run(
        self, request: Request, pair: Pair, release: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[Piece, None]:
        """One attempt on a given pair, from the room to the last piece. `release` gives the pair's places back."""
        prefill = pair.prefill
        room = self.rooms.take(prefill.dp_size, prefill.dp_rank) if prefill else self.rooms.take(1, 0)

        def over() -> None:
            self.rooms.give_back(room)
            release()

        attempt = self._attempts[request.id] = Attempt(request, pair, room, self._now_s, over)
        try:
            advance(request, Event.ADMITTED, self._now_s())
            advance(request, Event.DISPATCHED, self._now_s())  # before: an engine on a busy machine may be quicker
            attempt.start()
            limit_s, waiting_for = self._limits.first_token_s, "first token"
            while True:
                ids, reason = await attempt.next_tokens(self._within(request, limit_s), waiting_for)
                if request.phase is Phase.PREFILL:  # the first token, or an end without any
                    advance(request, Event.FIRST_TOKEN, self._now_s())
                piece = _emit(request, ids, reason)
                if piece.finish_reason is not None:
                    advance(request, Event.FINISH, self._now_s())
                yield piece
                if piece.finish_reason is not None:
                    return
                limit_s, waiting_for = self._limits.next_token_s, "next token"
        finally:
            del self._attempts[request.id]
            attempt.close()

    def cancel(self, request_id: str) -> bool:
        """Ends a live request with `Cancelled`; False if there is none (in a phase that can be told yet)."""
        attempt = self._attempts.get(request_id)
        if attempt is None:
            return False
        attempt.fail("cancelled on request", Cancelled)
        return True

    def find(self, request_id: str) -> Request | None:
        return self.live.get(request_id) or self._ended.get(request_id)

    async def _pair(self, request: Request) -> Pair:
        """Waits for a pair of READY engines that have met, at most `no_pair_s`."""
        try:
            async with asyncio.timeout(self._limits.no_pair_s):
                while (pair := self._table.pick()) is None:
                    await self._table.wait_for_change()
        except TimeoutError:
            raise NoReadyPair(
                f"request {request.id}", "no engines are ready to serve this", "try again shortly; see /disagg/status"
            ) from None
        return pair

    def _within(self, request: Request, limit_s: float) -> float:
        """The phase's limit, or what is left of the request's."""
        return min(limit_s, max(0.0, request.received_at_s + self._limits.request_s - self._now_s()))


def _emit(request: Request, ids: list[int], reason: str | None) -> Piece:
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
