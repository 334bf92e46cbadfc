"""What one try of a request holds of its engines: a place on each endpoint of its pair.

Way:   Admission -> Endpoints.reserve -> [Reservation] -> Attempt, which gives each place back when its leg is over
Owns:  the places, counted on their endpoints from the first moment on; each is given back exactly once
Fails: KeyError where one is given back twice, which is a bug
"""

from __future__ import annotations

from typing import Protocol

from disagg.routing.endpoints import Endpoint, Pair
from disagg.routing.observations import Stepped
from disagg.routing.view import Reason


class Holder(Protocol):
    """Who made the reservation, and is told when a place is given back, its prompt is read, or others may come beside
    it."""

    def on_released(self, reservation: Reservation, endpoint: Endpoint) -> None: ...

    def on_shared(self, reservation: Reservation) -> None: ...

    def on_has_read(self) -> None: ...


class Reservation:
    """`kv_tokens`: what it takes of each endpoint of the pair, in tokens of KV. `reason`: why it was this pair.
    `to_read`: prompt tokens that the pair's first endpoint is expected to read: those that it has not cached."""

    __slots__ = ("_holder", "_kv_tokens", "_unread", "beside", "pair", "reason", "to_read")

    def __init__(
        self, pair: Pair, reason: Reason, kv_tokens: dict[Endpoint, int], holder: Holder, to_read: int = 0
    ) -> None:
        self.pair, self.reason, self._kv_tokens, self._holder = pair, reason, kv_tokens, holder
        self.to_read = self._unread = to_read
        self.beside = pair.decode.load  # what ran there before it
        for endpoint, tokens in kv_tokens.items():
            endpoint.take(tokens, to_read if endpoint is pair.reader else 0)

    def stepped(self, prompt_tokens: int, step_s: float) -> Stepped:
        """Its decode engine's steps, which took so long each: beside what ran there, in the mean of then and now."""
        decode, (legs, kv_tokens) = self.pair.decode, self.beside
        legs_now, kv_tokens_now = decode.load
        return Stepped(decode.id, (legs + legs_now) // 2 + 1, (kv_tokens + kv_tokens_now) // 2 + prompt_tokens, step_s)

    @property
    def held(self) -> tuple[Endpoint, ...]:
        """Where it still has a place."""
        return tuple(self._kv_tokens)

    def release(self) -> None:
        """All that it still holds."""
        for endpoint in self.held:
            self.release_leg(endpoint)

    def release_leg(self, endpoint: Endpoint) -> None:
        """A prefill engine is free again long before its decode engine is."""
        endpoint.give_back(self._kv_tokens.pop(endpoint))  # KeyError: released twice, which is a bug
        if endpoint is self.pair.reader:
            self._forget_unread()
        self._holder.on_released(self, endpoint)

    def has_read(self) -> None:
        """The prompt waits no more, if it still did."""
        if self._unread:
            self._forget_unread()
            self._holder.on_has_read()

    def _forget_unread(self) -> None:
        self.pair.reader.has_read(self._unread)
        self._unread = 0

    def share(self) -> None:
        """Others may be sent to where a request was to be alone."""
        self._holder.on_shared(self)
