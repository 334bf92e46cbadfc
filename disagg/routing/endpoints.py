"""Where a leg can run, and where a request does: one dp rank of one connected engine, and a pair of those.

Way:   registry's record -> Connections -> [Engine of Endpoints] -> policy -> [Pair] -> Reservation
Owns:  on each endpoint, what this process has there and what its host said last. Whatever changes either mends the
       endpoint's place in its order, so a policy sees endpoints in order of load at any time
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import msgspec

from disagg.nearness import Names, shared
from disagg.plane.client import PlaneClient
from disagg.plane.ledger import Capacity, tokens_free
from disagg.plane.messages import RankTaken
from disagg.roles import Role

UNBOUNDED = 1 << 40
NOTHING = RankTaken(0, 0)


class RankId(NamedTuple):
    """The name of one dp rank of one incarnation, which outlives both."""

    engine_id: str
    life: str
    dp_rank: int

    def __str__(self) -> str:
        return f"{self.life}/{self.dp_rank}"


@dataclass(slots=True, eq=False)
class Endpoint:
    """One dp rank of one engine, for as long as one connection to the engine lasts.

    `load`: requests and KV tokens there: this process's now, and those of all others when its host last reported.
    `tokens_free`: the longest request (see plane.ledger.tokens_to_set_aside) that still has room beside them; negative
    when none has.
    """

    engine: Engine
    dp_rank: int
    bootstrap: str  # host:port; empty unless prefill
    client: PlaneClient
    capacity: Capacity
    caches: bool = True  # it has a prefix cache
    chunk_tokens: int = 0  # of prompts, that it reads in one step; 0: not known
    requests: int = 0  # this process's
    kv_tokens: int = 0
    to_read: int = 0  # prompt tokens
    bound: int = 0  # of prompts that wait in this process until they may be sent there
    reported: RankTaken = NOTHING  # by the host, for all frontends
    others: RankTaken = NOTHING  # of it, what was not this process's
    observed: RankTaken = NOTHING  # the report up to which its reading has been learnt from
    read_at_s: float = 0.0  # when it had last read something, as far as is known
    load: tuple[int, int] = (0, 0)
    tokens_free: int = UNBOUNDED
    refused_tokens: int = UNBOUNDED  # its host refused a request of so many since its last report
    order: ByLoad | None = None  # while a policy may choose it
    slot: int = -1  # its number in the index of cached prefixes
    tells_cache: bool = False  # what the index has of it is what its scheduler says; else nobody knows
    life: str = field(init=False)  # the engine's
    id: RankId = field(init=False)  # one for all requests that are remembered to have run here
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.life = self.engine.life
        self.id = RankId(self.engine.id, self.life, self.dp_rank)
        self.name = str(self.id)

    @property
    def dp_size(self) -> int:
        return len(self.engine.endpoints)

    @property
    def requests_of_clients(self) -> int:
        """`load` without canaries. They are no company: one cannot kill, and each restarted engine gets some."""
        return self.requests + max(0, self.others.requests - self.others.canaries)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that wait to be read there, all frontends' together as far as is known; those left out that are
        expected to be cached."""
        return self.sent_tokens + self.bound

    @property
    def sent_tokens(self) -> int:
        """Of these, what has been sent."""
        return self.to_read + self.others.to_read

    def take(self, kv_tokens: int, to_read: int) -> None:
        self.requests += 1
        self.kv_tokens += kv_tokens
        self.to_read += to_read
        self._changed()

    def has_read(self, tokens: int) -> None:
        """A prompt of this process waits no more; its host's next report may come late."""
        self.to_read -= tokens

    def give_back(self, kv_tokens: int) -> None:
        self.requests -= 1
        self.kv_tokens -= kv_tokens
        self._changed()

    def report(self, taken: RankTaken) -> None:
        """What its host has granted to all frontends together. Of this process's own it may not have met the last one
        yet: then others seem to have that much less, until the next report."""
        self.reported, self.refused_tokens = taken, UNBOUNDED
        self.others = msgspec.structs.replace(
            taken,
            requests=max(0, taken.requests - self.requests),
            kv_tokens=max(0, taken.kv_tokens - self.kv_tokens),
            to_read=max(0, taken.to_read - self.to_read),
        )
        self._changed()
        self._fit()  # also where it only no longer refuses

    def on_refused(self, tokens: int) -> None:
        """The host refused a leg of so many tokens: until its next report none of as many has room."""
        self.refused_tokens = min(self.refused_tokens, tokens)
        self._fit()

    def _changed(self) -> None:
        others, before = self.others, self.load
        load = self.requests + others.requests, self.kv_tokens + others.kv_tokens
        if load != before:
            self.load = load
            self._fit()
            if self.order is not None:
                self.order.move(self, before)

    def _fit(self) -> None:
        free = tokens_free(*self.load, self.capacity) if self.load[0] else UNBOUNDED
        self.tokens_free = min(free, self.refused_tokens - 1)


@dataclass(slots=True, eq=False)
class Engine:
    """One incarnation of an engine, for as long as one connection to it lasts."""

    id: str
    life: str  # names the incarnation
    role: Role
    number: int  # of two that are loaded alike the lower one is chosen
    endpoints: list[Endpoint] = field(default_factory=list)  # by dp rank
    place: Names = ()  # where it is, for how long KV takes to others

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open. It is False already when a lost connection ends its legs."""
        return all(endpoint.client.is_open for endpoint in self.endpoints[:1])

    @property
    def is_idle(self) -> bool:
        """No client's request runs there, as far as is known."""
        return not any(endpoint.requests_of_clients for endpoint in self.endpoints)


class ByLoad:
    """Endpoints of one role by (requests, KV tokens), and among equals by age of the engine and dp rank.

    A change of one costs O(log n): a bisection and a shift of pointers.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, int, int, Endpoint]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Endpoint]:
        for entry in self._entries:
            yield entry[4]

    def with_room(self, tokens: int, most: int) -> list[Endpoint]:
        """The first ones that have room for a request of so many tokens (see Endpoint.tokens_free)."""
        ranks = (rank for _, _, _, _, rank in self._entries if rank.tokens_free >= tokens and rank.client.is_open)
        return list(islice(ranks, most))

    def add(self, endpoint: Endpoint) -> None:
        endpoint.order = self
        insort(self._entries, _entry(endpoint, endpoint.load))

    def remove(self, endpoint: Endpoint) -> None:
        endpoint.order = None
        del self._entries[bisect_left(self._entries, _entry(endpoint, endpoint.load))]

    def move(self, endpoint: Endpoint, before: tuple[int, int]) -> None:
        """Called when the endpoint's load changes from `before` to `endpoint.load`."""
        entries = self._entries
        del entries[bisect_left(entries, _entry(endpoint, before))]
        insort(entries, _entry(endpoint, endpoint.load))


def _entry(endpoint: Endpoint, load: tuple[int, int]) -> tuple[int, int, int, int, Endpoint]:
    return (load[0], load[1], endpoint.engine.number, endpoint.dp_rank, endpoint)


class Pair(msgspec.Struct, frozen=True):
    """Where a request runs. `prefill` is None on an aggregated engine, which then is `decode`."""

    prefill: Endpoint | None
    decode: Endpoint

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    @property
    def reader(self) -> Endpoint:
        """Where the prompt is read."""
        return self.prefill or self.decode

    @property
    def shared(self) -> str:
        """The nearest kind of place that both are in."""
        return shared(self.reader.engine.place, self.decode.engine.place)

    @property
    def name(self) -> str:
        return self.decode.name if self.prefill is None else f"{self.prefill.name} + {self.decode.name}"
