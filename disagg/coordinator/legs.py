"""The two legs of a try in this process: they receive their frames and hand new tokens on.

Way:   PlaneClient -> [Leg, DecodeLeg] -> [TokenBatch], one a turn of the event loop -> Request -> Sink
In:    the frames of one leg: stages, tokens, its end
Owns:  the ids that the sink has not taken yet: one piece that grows while the client is slow
Fails: a gap in the tokens fails the try; what the sink or the text raises ends its own request alone
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Request
from disagg.coordinator.sink import Sink
from disagg.coordinator.suspects import PROVEN_TOKENS
from disagg.errors import LegLost, RequestError
from disagg.plane import messages as m
from disagg.role_table import ROLES
from disagg.routing.endpoints import Endpoint

log = logging.getLogger(__name__)

# Looked up once: a member of an Enum's class costs 0.2 µs in Python 3.11, and each token would ask.
_DECODING = Phase.DECODING


class Try(Protocol):
    """What a leg calls on the attempt that it belongs to."""

    is_closed: bool  # nothing that a leg reports changes the request any more

    def on_stage(self, name: str, cached_tokens: int | None) -> None: ...

    def on_prompt_logprobs(self, logprobs: list[m.TokenLogprobs]) -> None: ...

    def on_token_bytes(self, token_bytes: dict[int, bytes]) -> None: ...

    def on_prefills_token(self, logprobs: list[m.TokenLogprobs]) -> None: ...

    def on_first_token(self, now_s: float) -> None: ...

    def on_proven(self) -> None:
        """Called for a request on trial once its engine has survived it."""

    def on_leg_end(self, leg: Leg) -> None: ...

    def fail(self, as_error: type[RequestError], what: str, *lives: str) -> None: ...

    def break_off(self, error: RequestError | None = None) -> None:
        """Ends the try after an error of ours: one that nobody foresaw, or that of the sink."""

    def wake(self) -> None:
        """Wakes the attempt's task, which ends the answer or waits for the client."""


class Leg:
    """Takes one leg's frames. `number`: the plane's, for an abort; `received`: tokens of this try."""

    __slots__ = ("attempt", "end", "endpoint", "is_broken", "number", "received", "role")

    def __init__(self, attempt: Try, endpoint: Endpoint) -> None:
        self.attempt, self.role, self.endpoint = attempt, ROLES[endpoint.engine.role], endpoint
        self.number = 0
        self.received = 0
        self.is_broken = False
        self.end: m.LegEnd | None = None

    def on_tokens(self, offset: int, token_ids: list[int], logprobs: list[m.TokenLogprobs] | None = None) -> None:
        if offset != self.received:
            self.is_broken = True
            what = f"{self.role.name} sent token {offset} after {self.received} tokens"
            self.attempt.fail(LegLost, what, self.endpoint.life)
            return
        self.received = offset + len(token_ids)
        if logprobs is not None:
            if prompt := logprobs[: len(logprobs) - len(token_ids)]:
                self.attempt.on_prompt_logprobs(prompt)
            self.note_logprobs(logprobs[len(prompt) :])
        self.receive(token_ids)

    def receive(self, token_ids: list[int]) -> None:
        """Drops a prefill's token: its decode leg sends the same one."""

    def note_logprobs(self, logprobs: list[m.TokenLogprobs]) -> None:
        """Of the tokens that `receive` gets next; a prefill's are dropped with its token, but for what decode lacks."""
        self.attempt.on_prefills_token(logprobs)

    def on_text(self, shown: m.Shown) -> None:
        """Of the tokens that come next, where hosts say their text."""
        self.attempt.on_token_bytes(shown.token_bytes)

    def on_stage(self, name: str, cached_tokens: int | None) -> None:
        # What a decode engine calls transferring is its wait for prefill, too.
        if self.role.reads_prompts or name == "bootstrapping":
            self.attempt.on_stage(name, cached_tokens)

    def on_end(self, end: m.LegEnd) -> None:
        if self.is_broken:  # a good end does not make up for lost tokens
            end = msgspec.structs.replace(end, reason="error", detail="tokens were lost on the way")
        self.end = end
        self.attempt.on_leg_end(self)


class DecodeLeg(Leg):
    """The leg whose tokens the client gets. A token touches this object, its request and its sink, and nothing else:
    with hundreds of streams, fetching one more object from memory costs more than the work on the token."""

    __slots__ = ("batch", "is_held", "request", "sink", "unsent")

    def __init__(self, attempt: Try, endpoint: Endpoint, request: Request, sink: Sink, batch: TokenBatch) -> None:
        super().__init__(attempt, endpoint)
        self.request, self.sink, self.batch = request, sink, batch
        self.unsent: list[int] | None = None
        self.is_held = False  # the attempt's task takes what is there, or the try is over

    def receive(self, token_ids: list[int]) -> None:
        if self.unsent:
            self.unsent += token_ids
            return
        self.unsent = token_ids
        if not self.is_held:
            self.batch.add(self)

    def note_logprobs(self, logprobs: list[m.TokenLogprobs]) -> None:
        if not self.attempt.is_closed:  # else the request has ended, or has begun another try
            self.request.logprobs += logprobs
            if self.request.first_chosen:
                self.request.join_first_chosen()

    def on_text(self, shown: m.Shown) -> None:
        super().on_text(shown)
        if not self.attempt.is_closed and (given := self.request.given) is not None:
            given.give(shown)

    def hand_out(self, now_s: float, *, is_open: bool = False) -> None:
        """Gives all unsent ids to the sink as one piece, if it takes one now."""
        ids, request = self.unsent, self.request
        if self.is_held or not ids:
            return
        try:
            if not (is_open or self.sink.is_open()):
                self.attempt.wake()
                return
            self.unsent = None
            if request.phase is not _DECODING:
                self.attempt.on_first_token(now_s)
            self.sink.put(request.add(ids, now_s), ids)
            if request.text.stopped:
                self.attempt.wake()
        except RequestError as error:
            self.attempt.break_off(error)
        except Exception:  # its own request's alone: others are handed out in the same turn
            log.exception("request %s: an error nobody foresaw", request.id)
            self.attempt.break_off()


class EmbeddingLeg(DecodeLeg):
    """The one leg of a request for a vector, which comes with its end."""

    __slots__ = ()

    def on_end(self, end: m.LegEnd) -> None:
        if end.reason in m.WELL and not end.embedding:
            end = msgspec.structs.replace(end, reason="error", detail="it ended without a vector")
        super().on_end(end)


class LegOnTrial(DecodeLeg):
    """The decode leg of a request that is tried alone (see suspects.py)."""

    __slots__ = ()

    def receive(self, token_ids: list[int]) -> None:
        super().receive(token_ids)
        if self.received >= PROVEN_TOKENS > self.received - len(token_ids):
            self.attempt.on_proven()


class TokenBatch:
    """The legs that got tokens in this turn of the event loop. At the turn's end each hands them out as one piece,
    which is one write, even if they came from several steps."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._legs: list[DecodeLeg] = []

    def add(self, leg: DecodeLeg) -> None:
        legs = self._legs
        if not legs:
            asyncio.get_running_loop().call_soon(self._hand_out)
        legs.append(leg)

    def _hand_out(self) -> None:
        legs, self._legs = self._legs, []
        now_s = self._now_s()
        for leg in legs:
            leg.hand_out(now_s)
