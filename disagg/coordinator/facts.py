"""What is known of a request beside its tokens and its times: for its timeline, the metrics, the log.

Way:   coordinator, Attempt, frontend -> [Facts] -> GET /disagg/requests/ID, metrics
Owns:  the names and the shape of what is shown
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from disagg.routing.endpoints import RankId
from disagg.routing.view import Reason


@dataclass(frozen=True, slots=True)
class LostTry:
    """A try that ended because a leg was lost or a deadline passed."""

    on: str  # the pair
    after_tokens: int  # of the whole answer
    why: str
    bystander: bool  # an engine died, and not for this request: the try counts against no limit


@dataclass(frozen=True, slots=True)
class Failure:
    """The error that a request ended with. `where` names hosts and rooms."""

    type: str
    message: str
    where: str


class Facts(msgspec.Struct, gc=False):
    """None or empty: not known, or there is none. Room, ranks, their reason and KV are those of the last try.

    Thousands are remembered. The garbage collector skips them: nothing that they hold leads back to them.
    """

    client_request_id: str | None = None
    room: int | None = None
    prefill: RankId | None = None  # none on an aggregated engine
    decode: RankId | None = None
    routed: Reason | None = None  # why there
    adapter: str | None = None  # LoRA, of both legs
    cached_tokens: int | None = None  # of the prompt
    kv_bytes: int | None = None  # that prefill sent
    kv_transfer_s: float | None = None
    stood_s: float | None = None  # of its answer's time its engine read others' prompts
    pauses_ms: tuple[float, ...] = ()  # how long a migration held the client's stream up
    lost_tries: tuple[LostTry, ...] = ()
    died_under_it: tuple[str, ...] = ()  # engine lives, of a request that is not tried again for it
    error: Failure | None = None

    def shown(self) -> dict[str, Any]:
        """As a timeline shows them, what is not known left out."""
        facts = msgspec.to_builtins(self)
        known = {name: list(f) if type(f) is tuple else f for name, f in facts.items() if f not in (None, ())}
        return known | self.places if self.decode is not None else known

    @property
    def places(self) -> dict[str, str | None]:
        """The ranks of its last try."""
        ranks = {"prefill": self.prefill, "decode": self.decode}
        return {name: str(rank) if rank else None for name, rank in ranks.items()}
