"""Which engines this process may use now, and where the next request goes.

Way:   admission -> [EngineTable.pick] -> Attempt
In:    the registry's records and who has met whom, and what hosts report as taken; out: a Reservation of a pair, or
       None while none has room
Owns:  a plane connection to each READY incarnation (made again when it breaks under a READY engine), and the count of
       what this process has on each dp rank
Fails: an engine that is no longer READY or DRAINING loses its connection here at once, and with it all legs on it
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import partial

from disagg.errors import LegLost
from disagg.plane.client import PlaneClient
from disagg.plane.ledger import Capacity
from disagg.plane.messages import RankTaken
from disagg.plane.network import TCP, Network
from disagg.registry.met import Met
from disagg.registry.records import EngineRecord, State
from disagg.registry.table import View
from disagg.roles import Role
from disagg.routing.endpoints import UNBOUNDED, Endpoint, Pair
from disagg.routing.reservation import Reservation

log = logging.getLogger(__name__)

RECONNECT_S = (0.1, 0.3, 1.0, 2.0)  # pauses between tries; the last one repeats


@dataclass(slots=True, eq=False)
class _Life:
    """What this process holds of one incarnation."""

    record: EngineRecord
    first_try: asyncio.Future[None]  # done when the first connection is made, or was refused
    client: PlaneClient | None = None
    places: list[Endpoint] = field(default_factory=list)
    connecting: asyncio.Task[None] | None = None
    is_evicted: bool = False
    on_trial: Reservation | None = None  # of a request that nobody else is to be beside


class EngineTable:
    """`on_change` is called when a pair may have become free; `on_evict(life)` when requests should leave an engine."""

    def __init__(self, secret: bytes, network: Network = TCP, now_s: Callable[[], float] = time.monotonic) -> None:
        self._secret, self._network, self._now_s = secret, network, now_s
        self.records: Mapping[str, EngineRecord] = {}
        self._met = Met()
        self._lives: dict[str, _Life] = {}
        self._reservations: set[Reservation] = set()
        self._report_is_due = False
        self.on_change: Callable[[], None] = lambda: None
        self.on_evict: Callable[[str], None] = lambda _life: None

    async def follow(self, watch: AsyncIterator[View]) -> None:
        """Runs until the registry is gone. Waits for no connection: the next record may tell of a dead engine."""
        async for view in watch:
            self._apply(view)

    async def update(self, view: View) -> None:
        """As one step of `follow`; returns when each newly READY engine is connected, or did not answer once."""
        await asyncio.gather(*(life.first_try for life in self._apply(view)))

    def _apply(self, view: View) -> list[_Life]:
        """Begins to connect to newly READY incarnations (returned), lets go of those that may not be used any more."""
        self.records, self._met = view.records, view.met
        wanted = {r.life: r for r in view.records.values() if r.plane and r.state in (State.READY, State.DRAINING)}
        for life in self._lives.keys() - wanted.keys():
            self._let_go(self._lives.pop(life))
        new: list[_Life] = []
        for life, record in wanted.items():
            known = self._lives.get(life)
            if known is not None:
                known.record = record
            elif record.state is State.READY:
                self._lives[life] = known = _Life(record, asyncio.get_running_loop().create_future())
                new.append(known)
                self._connect_soon(known)
            if known is not None and record.evict and not known.is_evicted:
                known.is_evicted = True
                self.on_evict(life)
        self.on_change()
        return new

    def is_ready(self) -> bool:
        """Some pair could serve, were it free: READY, connected, and a transfer between them has succeeded."""
        decodes, prefills = self._usable()
        lives = {life.record.life for life in prefills}
        return any(
            life.record.role is Role.AGGREGATED or not lives.isdisjoint(self._met.met_with(life.record.life))
            for life in decodes
        )

    def pick(
        self,
        prompt_tokens: int,
        new_tokens: int,
        avoid: Set[str] = frozenset(),
        alone_on: Set[Role] = frozenset(),
    ) -> Reservation | None:
        """The least loaded pair that has met and has room on both sides, counted as taken until it is released.

        `avoid`: engine lives to take only where nothing else has room. `alone_on`: of these roles only engines on
        which nothing runs, and which nobody else is given before it is shared.
        """

        def best_of(life: _Life, tokens: int) -> tuple[_Score, Endpoint] | None:
            """Of an engine's ranks: each is looked at once, not once a pair."""
            if life.on_trial is not None or (life.record.role in alone_on and any(p.load[0] for p in life.places)):
                return None
            scored = [
                ((life.record.life in avoid, *place.load), number, place)
                for number, place in enumerate(life.places)
                if place.has_room(place.needed(prompt_tokens, tokens))
            ]
            if not scored:
                return None
            score, _, place = min(scored)
            return score, place

        decodes, prefills = self._usable()
        found_prefills = [(life.record.life, best) for life in prefills if (best := best_of(life, 1))]
        chosen: tuple[_Score, Pair] | None = None
        for decode in decodes:
            best = best_of(decode, new_tokens)
            if best is None:
                continue
            if decode.record.role is Role.AGGREGATED:
                candidates = [(best[0], Pair(None, best[1]))]
            else:
                met = self._met.met_with(decode.record.life)
                candidates = [
                    (_sum(best[0], score), Pair(place, best[1]))
                    for life, (score, place) in found_prefills
                    if life in met
                ]
            for score, pair in candidates:
                if chosen is None or score < chosen[0]:
                    chosen = score, pair
        if chosen is None:
            return None
        pair = chosen[1]
        taken = {p: p.needed(prompt_tokens, 1 if p is pair.prefill else new_tokens) for p in pair.places}
        reservation = Reservation(pair, taken, self)
        self._reservations.add(reservation)
        if alone_on:
            for life in (self._lives[place.life] for place in pair.places):
                if life.record.role in alone_on:
                    life.on_trial = reservation
        return reservation

    def met_with(self, life: str) -> Set[str]:
        """The lives a real transfer with which has succeeded, but for itself."""
        return self._met.met_with(life) - {life}

    def is_lost(self, life: str) -> bool:
        """There is no connection to it now."""
        known = self._lives.get(life)
        return known is None or known.client is None

    @property
    def clients(self) -> dict[str, PlaneClient]:
        """Of the connected engines, by life."""
        return {name: life.client for name, life in self._lives.items() if life.client is not None}

    @property
    def granted(self) -> dict[tuple[str, int], tuple[int, int]]:
        """(engine id, dp rank) -> requests and KV tokens, as its host reported last."""
        places = (place for life in self._lives.values() for place in life.places)
        return {(p.engine_id, p.dp_rank): (p.reported.requests, p.reported.kv_tokens) for p in places}

    def in_flight(self, life: str) -> list[int]:
        """What this process has there, by dp rank."""
        counts = Counter(p.dp_rank for each in self._reservations for p in each.held if p.life == life)
        return [counts[rank] for rank in range(self._lives[life].record.ranks)] if life in self._lives else []

    @property
    def places_taken(self) -> int:
        return sum(len(each.held) for each in self._reservations)

    # told by reservations

    def on_shared(self, reservation: Reservation) -> None:
        for place in reservation.pair.places:
            self._end_trial(reservation, place)
        self.on_change()

    def on_released(self, reservation: Reservation, endpoint: Endpoint) -> None:
        if not reservation.held:
            self._reservations.remove(reservation)
        self._end_trial(reservation, endpoint)
        self.on_change()

    # inner

    def _end_trial(self, reservation: Reservation, place: Endpoint) -> None:
        life = self._lives.get(place.life)
        if life is not None and life.on_trial is reservation:
            life.on_trial = None

    def _usable(self) -> tuple[list[_Life], list[_Life]]:
        """READY engines that are connected: those that make tokens, and prefill engines."""
        usable = [
            life
            for life in self._lives.values()
            if life.record.state is State.READY and life.client is not None and life.client.is_open
        ]
        together = [life for life in usable if life.record.role is Role.AGGREGATED]
        decodes = together or [life for life in usable if life.record.role is Role.DECODE]
        return decodes, [] if together else [life for life in usable if life.record.role is Role.PREFILL]

    def _connect_soon(self, life: _Life) -> None:
        if life.connecting is None and self._lives.get(life.record.life) is life:
            life.connecting = asyncio.get_running_loop().create_task(
                self._connect(life), name=f"connect to {life.record.life}"
            )

    async def _connect(self, life: _Life) -> None:
        """Until it is connected, or let go of (which cancels this)."""
        try:
            for pause_s in itertools.chain(RECONNECT_S, itertools.repeat(RECONNECT_S[-1])):
                try:
                    await self._try_to_connect(life)
                    self.on_change()
                    return
                except LegLost as error:
                    log.warning("%s: %s", life.record.life, error)
                if not life.first_try.done():
                    life.first_try.set_result(None)
                await asyncio.sleep(pause_s)
        finally:
            life.connecting = None
            if not life.first_try.done():
                life.first_try.set_result(None)

    async def _try_to_connect(self, life: _Life) -> None:
        record = life.record
        client = PlaneClient(
            record.plane,
            record.incarnation,
            self._secret,
            partial(self._lost, life),
            on_taken=partial(self._taken, life),
            network=self._network,
            now_s=self._now_s,
        )
        capacity = Capacity(record.requests_max or UNBOUNDED, record.kv_tokens or UNBOUNDED, record.page_size)
        life.places = [  # before: the host's first report comes with its proof
            Endpoint(record.id, record.life, rank, record.ranks, record.bootstrap, client, capacity)
            for rank in range(record.ranks)
        ]
        await client.connect()
        life.client = client

    def _lost(self, life: _Life, why: str) -> None:
        """The host is gone before the registry says so: no request goes there until it answers again."""
        if life.client is None:
            return  # it never was connected: `_connect` tries again
        log.warning("%s: connection lost: %s", life.record.life, why)
        life.client = None
        self._connect_soon(life)
        self.on_change()

    def _let_go(self, life: _Life) -> None:
        if life.connecting is not None:
            life.connecting.cancel()
        client, life.client = life.client, None
        if client is not None:
            client.close()

    def _taken(self, life: _Life, ranks: list[RankTaken]) -> None:
        for place, taken in zip(life.places, ranks, strict=False):
            place.reported = taken
        if not self._report_is_due:  # reports of many hosts in one turn of the loop are looked at once
            self._report_is_due = True
            asyncio.get_running_loop().call_soon(self._look_at_reports)

    def _look_at_reports(self) -> None:
        self._report_is_due = False
        self.on_change()


_Score = tuple[int, int, int]  # to be avoided, requests, KV tokens: less is better


def _sum(one: _Score, other: _Score) -> _Score:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]
