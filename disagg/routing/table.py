"""Which engines this process may use now, and where the next request goes.

Way:   admission -> [EngineTable.pick] -> Attempt
In:    the registry's records; out: a Pair of places, or None while there is none
Owns:  a plane connection to each READY incarnation, and the count of requests this process has on each dp rank
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from disagg.coordinator.attempt import Pair
from disagg.errors import LegLost
from disagg.plane.client import PlaneClient
from disagg.registry.records import EngineRecord, Role, State

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """One dp rank of one incarnation."""

    engine_id: str
    life: str
    dp_rank: int
    dp_size: int
    bootstrap: str  # host:port; empty unless prefill
    client: PlaneClient

    @property
    def name(self) -> str:
        return f"{self.life}/{self.dp_rank}"


class EngineTable:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.records: dict[str, EngineRecord] = {}
        self._clients: dict[str, PlaneClient] = {}  # by life
        self._in_flight: Counter[tuple[str, int]] = Counter()  # (life, dp rank)
        self._changed = asyncio.Event()

    async def follow(self, watch: AsyncIterator[dict[str, EngineRecord]]) -> None:
        """Runs until the registry is gone."""
        async for records in watch:
            await self.update(records)

    async def update(self, records: dict[str, EngineRecord]) -> None:
        """Connects to newly READY incarnations and lets go of those that no record names any more."""
        self.records = records
        wanted = {r.life: r for r in records.values() if r.plane and r.state in (State.READY, State.DRAINING)}
        for life in self._clients.keys() - wanted.keys():
            self._clients.pop(life).close()
        for life, record in wanted.items():
            if life not in self._clients and record.state is State.READY:
                client = PlaneClient(record.plane, record.incarnation, self._secret, partial(self._lost, life))
                try:
                    await client.connect()
                except LegLost as error:
                    log.warning("%s: %s", life, error)
                    continue
                self._clients[life] = client
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self) -> None:
        await self._changed.wait()

    def is_ready(self) -> bool:
        return self._best_pair() is not None

    def pick(self) -> Pair | None:
        """The least loaded pair that has met, counted as taken until `release`."""
        pair = self._best_pair()
        if pair is not None:
            for place in (pair.prefill, pair.decode):
                if place is not None:
                    self._in_flight[place.life, place.dp_rank] += 1
        return pair

    def release(self, pair: Pair) -> None:
        for place in (pair.prefill, pair.decode):
            if place is not None:
                self._in_flight[place.life, place.dp_rank] -= 1
                if self._in_flight[place.life, place.dp_rank] == 0:
                    del self._in_flight[place.life, place.dp_rank]

    def in_flight(self, life: str) -> int:
        return sum(count for (of, _), count in self._in_flight.items() if of == life)

    @property
    def places_taken(self) -> int:
        return self._in_flight.total()

    def _best_pair(self) -> Pair | None:
        usable = [r for r in self.records.values() if r.state is State.READY and r.life in self._clients]
        together = [r for r in usable if r.role is Role.AGGREGATED]
        if together:
            return Pair(None, min((p for r in together for p in self._places(r)), key=self._load))
        prefills = [r for r in usable if r.role is Role.PREFILL]
        best: tuple[int, Pair] | None = None
        for decode in (r for r in usable if r.role is Role.DECODE):
            for prefill in prefills:
                if prefill.life not in decode.peers:
                    continue  # no transfer between these two incarnations has succeeded yet
                p = min(self._places(prefill), key=self._load)
                d = min(self._places(decode), key=self._load)
                load = self._load(p) + self._load(d)
                if best is None or load < best[0]:
                    best = load, Pair(p, d)
        return best[1] if best else None

    def _places(self, record: EngineRecord) -> list[Place]:
        client = self._clients[record.life]
        return [
            Place(record.id, record.life, rank, record.ranks, record.bootstrap, client) for rank in range(record.ranks)
        ]

    def _load(self, place: Place) -> int:
        return self._in_flight[place.life, place.dp_rank]

    def _lost(self, life: str, why: str) -> None:
        """The host is gone before the registry says so: no request goes there any more."""
        log.warning("%s: connection lost: %s", life, why)
        self._clients.pop(life, None)
