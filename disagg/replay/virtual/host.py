"""A simulated engine and its host: some ranks, the real ledger of what is granted, reports to all frontends.

Way:   Frontend -> [Host.grant] -> Rank; [reports] -> each frontend's Endpoints, at most one in REPORT_S
Fails: grant says False where the ledger has no room: frontends choose by reports that are a moment old
"""

from __future__ import annotations

from collections.abc import Callable

from disagg.nearness import Names
from disagg.plane.ledger import Capacity, Ledger
from disagg.plane.messages import RankTaken
from disagg.plane.server import REPORT_S
from disagg.replay.virtual.clock import Clock
from disagg.replay.virtual.rank import Rank
from disagg.replay.virtual.served import Served
from disagg.role_table import ROLES
from disagg.routing.reservation import Reservation
from disagg.simulated_engine.model import Model

Report = Callable[["Host", list[RankTaken]], None]


class Host:
    """`on_report` is told what to hand to the frontends, once they would have it."""

    def __init__(self, clock: Clock, life: str, model: Model, on_report: Report) -> None:
        self._clock, self.life, self.model, self._on_report = clock, life, model, on_report
        self.capacity = Capacity(model.requests_max, model.kv_tokens, model.page_size)
        self.ledger = Ledger(model.ranks, self.capacity)
        self.ranks: list[Rank] = []
        self.place: Names = ()
        self._report_is_due = False
        self._reported_at_s = float("-inf")

    def grant(self, served: Served, rank: int, reservation: Reservation) -> bool:
        new_tokens = ROLES[self.model.role].new_tokens(served.max_tokens)
        to_read = reservation.to_read if reservation.pair.reader.life == self.life else 0
        grant = self.ledger.grant(rank, served.prompt_tokens, new_tokens, to_read=to_read)
        if grant is None:
            self.changed()
            return False
        served.grants[self.life] = grant
        self.changed()
        return True

    def has_read(self, served: Served) -> None:
        self.ledger.has_read(served.grants[self.life])
        self.changed()

    def give_back(self, served: Served, *, reads: bool) -> None:
        """`reads`: it was read here."""
        grant = served.grants.pop(self.life)
        self.ledger.give_back(grant)
        if reads:
            reading = self.ledger.reading[grant.dp_rank]
            reading.add(served.prompt_tokens, served.cached_tokens, served.first_chunk_s, served.read_s)
        self.changed()

    def changed(self) -> None:
        if not self._report_is_due:
            self._report_is_due = True
            self._clock.at(max(self._clock.now_s, self._reported_at_s + REPORT_S), self._report)

    def _report(self) -> None:
        self._report_is_due, self._reported_at_s = False, self._clock.now_s
        ledger = self.ledger
        granted = zip(ledger.requests, ledger.kv_tokens, ledger.canaries, ledger.to_read, strict=True)
        ranks = [
            RankTaken(*taken, read.prompts, read.tokens, read.area, read.seconds, read.loaded)
            for taken, read in zip(granted, ledger.reading, strict=True)
        ]
        self._on_report(self, ranks)
