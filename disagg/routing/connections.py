"""A plane connection to each engine that may be used now, as the registry says.

Way:   registry's records -> [Connections] -> Endpoints (load.py), from which a policy chooses
In:    the registry's records and who has met whom, and what hosts report as taken
Owns:  a plane connection to each READY incarnation, made again when it breaks under a READY engine
Fails: an engine that is no longer READY or DRAINING loses its connection here at once, and with it all legs on it
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from disagg.adapters import Adapter
from disagg.errors import LegLost
from disagg.nearness import names_of
from disagg.plane.client import PlaneClient
from disagg.plane.ledger import Capacity
from disagg.plane.messages import RankTaken
from disagg.plane.network import TCP, Network
from disagg.registry.changes import Changes
from disagg.registry.records import EngineRecord, State
from disagg.registry.table import View
from disagg.role_table import ROLES
from disagg.routing.endpoints import UNBOUNDED, Endpoint, Engine
from disagg.routing.in_slices import InSlices
from disagg.routing.kv_feed import KvFeed
from disagg.routing.load import Endpoints

log = logging.getLogger(__name__)

SWEEP_S = 0.01
RECONNECT_S = (0.1, 0.3, 1.0, 2.0)  # pauses between tries; the last one repeats


@dataclass(slots=True, eq=False)
class _Life:
    """What this process holds of one incarnation."""

    record: EngineRecord
    number: int  # in order of appearance
    client: PlaneClient | None = None
    engine: Engine | None = None  # of the last connection, and of one that is being made
    feed: KvFeed | None = None  # of the same connection
    connecting: asyncio.Task[None] | None = None
    is_evicted: bool = False


class CacheTold(NamedTuple):
    """Of one dp rank. `blocks`: that the index has of it."""

    blocks: int
    is_known: bool
    gaps: int
    lag_s: float


class Connections:
    """`on_evict(life)` is called when requests should leave an engine; `endpoints.on_change` when one may be free.
    `on_view(changes)` is called when the registry's have been taken in.
    `block_tokens`: of a KV block, as the hosts cut them; 0: nobody asks what they have cached. `kv_events`: they tell;
    else it is guessed from what was sent there."""

    def __init__(
        self,
        secret: bytes,
        network: Network = TCP,
        now_s: Callable[[], float] = time.monotonic,
        block_tokens: int = 0,
        kv_events: bool = True,
    ) -> None:
        self._block_tokens, self._kv_events = block_tokens, kv_events
        self._secret, self._network, self._now_s = secret, network, now_s
        self.records: Mapping[str, EngineRecord] = {}
        self.adapters: Mapping[str, Adapter] = {}  # that new requests may name; another mapping after each change
        self.request_tokens_max = 0  # prompt + output that every READY engine can hold; 0 while none is known
        self.embedding_tokens_max = 0  # the same of engines that make vectors
        self._lives: dict[str, _Life] = {}
        self.endpoints = Endpoints()
        self.endpoints.block_tokens = block_tokens
        self._numbers = itertools.count()
        self._report_is_due = self._is_sweeping = False
        self._kv_slices = InSlices()
        self.on_evict: Callable[[str], None] = lambda _life: None
        self.on_view: Callable[[Changes], None] = lambda _changes: None
        self._waiting: dict[asyncio.Future[None], None] = {}  # in their order

    async def follow(self, watch: AsyncIterator[View]) -> None:
        """Runs until the registry is gone. Waits for no connection: the next record may tell of a dead engine."""
        async for view in watch:
            self.apply(view)

    def apply(self, view: View) -> None:
        """Begins to connect to newly READY incarnations, lets go of those that may not be used any more."""
        self.records = view.records
        if view.changes.adapters:
            self.adapters = {name: adapter for name, adapter in view.adapters.items() if not adapter.is_leaving}
        self.request_tokens_max = _request_tokens_max(view.records.values(), embeds=False)
        self.embedding_tokens_max = _request_tokens_max(view.records.values(), embeds=True)
        self.endpoints.meet(view.met)
        wanted = {r.life: r for r in view.records.values() if r.plane and r.state in (State.READY, State.DRAINING)}
        for life in self._lives.keys() - wanted.keys():
            self._let_go(self._lives.pop(life))
        for life, record in wanted.items():
            known = self._lives.get(life)
            if known is not None:
                known.record = record
                self._offer(known)
            elif record.state is State.READY:
                self._lives[life] = known = _Life(record, next(self._numbers))
                self._connect_soon(known)
            if known is not None and record.evict and not known.is_evicted:
                known.is_evicted = True
                self.on_evict(life)
        self.endpoints.on_change()
        self.on_view(view.changes)

    def met_with(self, life: str) -> Set[str]:
        """The lives with which this one has had a successful real transfer, itself left out."""
        return self.endpoints.met.met_with(life) - {life}

    def is_lost(self, life: str) -> bool:
        """There is no connection to it now."""
        known = self._lives.get(life)
        return known is None or known.client is None

    @property
    def clients(self) -> dict[str, PlaneClient]:
        """Of the connected engines, by life."""
        return {name: life.client for name, life in self._lives.items() if life.client is not None}

    @property
    def engines(self) -> list[Engine]:
        """Of the last connection to each incarnation that may be used."""
        return [life.engine for life in self._lives.values() if life.engine is not None]

    async def connected(self) -> None:
        """Until one more engine is connected."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = None
        try:
            await waiting
        finally:
            self._waiting.pop(waiting, None)

    @property
    def granted(self) -> dict[tuple[str, int], tuple[int, int]]:
        """(engine id, dp rank) -> requests and KV tokens, as its host reported last."""
        endpoints = (endpoint for engine in self.engines for endpoint in engine.endpoints)
        return {(e.engine.id, e.dp_rank): (e.reported.requests, e.reported.kv_tokens) for e in endpoints}

    @property
    def caches(self) -> dict[tuple[str, int], CacheTold]:
        """(engine id, dp rank) -> what is known or guessed of its prefix cache, of the connected engines."""
        index, told = self.endpoints.index, {}
        for life in self._lives.values() if self._block_tokens else ():
            if life.client is not None and life.engine is not None and not ROLES[life.record.role].embeds:
                gaps, lag_s = (life.feed.gaps, life.feed.lag_s) if life.feed is not None else ({}, {})
                for e in life.engine.endpoints:
                    blocks = index.blocks_of(e.slot)
                    rank = CacheTold(blocks, e.tells_cache, gaps.get(e.dp_rank, 0), lag_s.get(e.dp_rank, 0.0))
                    told[e.engine.id, e.dp_rank] = rank
        return told

    @property
    def caches_are_whole(self) -> bool:
        """All that the connected engines held when they were asked is in the index."""
        feeds = [life.feed for life in self._lives.values() if life.client is not None and life.feed is not None]
        return all(feed.is_whole or feed.why_not for feed in feeds)

    def in_flight(self, life: str) -> list[int]:
        """What this process has there, by dp rank; empty for an incarnation that is gone."""
        known = self._lives.get(life)
        if known is None:
            return []
        return [e.requests for e in known.engine.endpoints] if known.engine else [0] * known.record.ranks

    def _offer(self, life: _Life) -> None:
        """Offers the engine to policies, or takes it back."""
        if life.engine is None:
            return
        if life.client is not None and life.record.state is State.READY:
            self.endpoints.add(life.engine)
        else:
            self.endpoints.remove(life.engine)

    def _connect_soon(self, life: _Life) -> None:
        if life.connecting is None and self._lives.get(life.record.life) is life:
            life.connecting = asyncio.get_running_loop().create_task(
                self._connect(life), name=f"connect to {life.record.life}"
            )

    async def _connect(self, life: _Life) -> None:
        """Tries until it is connected. Letting go of the incarnation cancels this."""
        try:
            for pause_s in itertools.chain(RECONNECT_S, itertools.repeat(RECONNECT_S[-1])):
                try:
                    await self._try_to_connect(life)
                    self.endpoints.on_change()
                    return
                except LegLost as error:
                    log.warning("%s: %s", life.record.life, error)
                await asyncio.sleep(pause_s)
        finally:
            life.connecting = None

    async def _try_to_connect(self, life: _Life) -> None:
        record = life.record
        endpoints, feed = self.endpoints, None
        life.engine = engine = Engine(record.id, record.life, record.role, life.number)
        engine.place = names_of(record.place)
        if self._block_tokens and self._kv_events and not ROLES[record.role].embeds:
            feed = KvFeed(
                engine,
                endpoints.index,
                self._block_tokens,
                lambda: client.ask_for_kv(),
                self._sweep_soon,
                self._kv_slices.add,
            )
        client = PlaneClient(
            record.plane,
            record.incarnation,
            self._secret,
            partial(self._lost, life),
            on_taken=partial(self._taken, life),
            on_kv=feed.on_kv if feed else None,
            network=self._network,
            now_s=self._now_s,
        )
        capacity = Capacity(record.requests_max or UNBOUNDED, record.kv_tokens or UNBOUNDED, record.page_size)
        engine.endpoints = [  # before: the host's first report comes with its proof
            Endpoint(engine, rank, record.bootstrap, client, capacity, record.caches_prompts, record.chunk_tokens)
            for rank in range(record.ranks)
        ]
        endpoints.open_slots(engine)
        try:
            await client.connect()
        except BaseException:
            endpoints.close_slots(engine)
            raise
        life.client, life.feed = client, feed
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._offer(life)

    def _lost(self, life: _Life, why: str) -> None:
        """The connection ended before the registry reported a death: no request goes there until the host answers
        again."""
        if life.client is None:
            return  # it never was connected: `_connect` tries again
        log.warning("%s: connection lost: %s", life.record.life, why)
        life.client = None
        self._close_slots(life)
        self._offer(life)
        self._connect_soon(life)
        self.endpoints.on_change()

    def _let_go(self, life: _Life) -> None:
        if life.connecting is not None:
            life.connecting.cancel()
        client, life.client = life.client, None
        self._close_slots(life)
        self._offer(life)
        if client is not None:
            client.close()

    def _close_slots(self, life: _Life) -> None:
        if life.feed is not None:
            life.feed.close()
            life.feed = None
        if life.engine is not None:
            self.endpoints.close_slots(life.engine)
            self._sweep_soon()

    def _sweep_soon(self) -> None:
        """Frees what the index has of ranks that were cleared, bit by bit."""
        if not self._is_sweeping:
            self._is_sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._is_sweeping = False
        if self.endpoints.index.sweep():
            self._sweep_soon()

    def _taken(self, life: _Life, ranks: list[RankTaken]) -> None:
        if life.engine is not None:
            for endpoint, taken in zip(life.engine.endpoints, ranks, strict=False):
                self.endpoints.report(endpoint, taken, self._now_s())
        if not self._report_is_due:  # reports of many hosts in one turn of the loop are looked at once
            self._report_is_due = True
            asyncio.get_running_loop().call_soon(self._look_at_reports)

    def _look_at_reports(self) -> None:
        self._report_is_due = False
        self.endpoints.on_change()


def _request_tokens_max(records: Iterable[EngineRecord], *, embeds: bool) -> int:
    known = [r for r in records if r.request_tokens_max and ROLES[r.role].embeds is embeds]
    ready = [record for record in known if record.state is State.READY] or known
    return min((record.request_tokens_max for record in ready), default=0)
