"""Where a leg can run, and where a request does: one dp rank of one incarnation, and a pair of those.

Way:   registry's record -> [Endpoint] -> policy -> [Pair] -> Attempt, whose legs go there
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from disagg.plane.client import PlaneClient
from disagg.plane.ledger import Capacity, fits, kv_tokens_needed
from disagg.plane.messages import RankTaken

UNBOUNDED = 1 << 40
NOTHING = RankTaken(0, 0)
LIMITLESS = Capacity(UNBOUNDED, UNBOUNDED, 1)  # for canaries, which clients' requests must not hold up


class RankId(NamedTuple):
    """The name of one dp rank of one incarnation, which outlives both."""

    engine_id: str
    life: str
    dp_rank: int

    def __str__(self) -> str:
        return f"{self.life}/{self.dp_rank}"


@dataclass(slots=True, eq=False)
class Endpoint:
    """One dp rank of one incarnation. Counts what this process has there; `reported` is what its host said last."""

    engine_id: str
    life: str
    dp_rank: int
    dp_size: int
    bootstrap: str  # host:port; empty unless prefill
    client: PlaneClient
    capacity: Capacity = LIMITLESS
    requests: int = 0
    kv_tokens: int = 0
    reported: RankTaken = NOTHING

    @property
    def id(self) -> RankId:
        return RankId(self.engine_id, self.life, self.dp_rank)

    @property
    def name(self) -> str:
        return str(self.id)

    @property
    def load(self) -> tuple[int, int]:
        """Requests and KV tokens there, all frontends' together as far as is known."""
        return max(self.requests, self.reported.requests), max(self.kv_tokens, self.reported.kv_tokens)

    def has_room(self, needed: int) -> bool:
        return fits(*self.load, needed, self.capacity)

    def needed(self, prompt_tokens: int, new_tokens: int) -> int:
        return kv_tokens_needed(prompt_tokens, new_tokens, self.capacity.page_size)

    def on_refused(self) -> None:
        """Its host knows better than we: full, until it reports again."""
        self.reported = RankTaken(max(1, self.capacity.requests), self.capacity.kv_tokens)


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a request runs. `prefill` is None on an aggregated engine, which then is `decode`."""

    prefill: Endpoint | None
    decode: Endpoint

    @property
    def places(self) -> tuple[Endpoint, ...]:
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    @property
    def name(self) -> str:
        return " + ".join(place.name for place in self.places)
