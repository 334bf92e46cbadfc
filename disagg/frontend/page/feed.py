"""What the page is told: once a snapshot, then each second what has changed.

Way:   registry's changes, ranks' loads, requests -> [Feed] -> a Viewer each open page
                                        other frontends' -> others.py -> [Feed]
In:    the coordinator and the connections of this frontend; what hosts report is of all frontends, and each second the
       others tell their Part: what they count, and their requests
Owns:  one task while somebody looks, here or at another frontend, none else; the charts' last HISTORY seconds; the
       newest events, encoded once for all viewers. A viewer has no queue: one that was too slow for an event gets a new
       snapshot
Fails: FrontendFull for more than VIEWERS_MAX pages
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import ChainMap, Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from disagg import __version__
from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.remembered import Remembered
from disagg.coordinator.request import Request
from disagg.errors import FrontendFull
from disagg.frontend.events import event
from disagg.frontend.page.meter import Meter, Sample, Second
from disagg.frontend.page.others import Ask, Lists, Others, Part
from disagg.frontend.page.rows import ended_rows, engine_row, live_rows, longest, newest
from disagg.frontend.page.story import Story
from disagg.registry.changes import Changes
from disagg.registry.records import EngineRecord
from disagg.routing.connections import Connections
from disagg.routing.endpoints import Pair

VIEWERS_MAX = 32
TICK_S = 1.0
HISTORY = 15 * 60  # samples
WATCHED_S = 5.0  # after another frontend has asked, it is asked again
NOTHING = Second(Sample(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, None, None), Counter(), Counter(), [])

Loads = dict[str, list[list[float]]]  # engine -> each rank's requests, KV tokens, tokens made and read a second


class Feed:
    """What all open pages of a frontend are told, made once for all of them.

    `now_s`: the monotonic clock of requests; `wall_s`: of what people read.
    """

    def __init__(
        self,
        model_name: str,
        coordinator: Coordinator,
        connections: Connections,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        more: Sequence[tuple[Coordinator, Connections]] | None = None,
    ) -> None:
        """`more`: of further models; None: there is one, and no other comes."""
        self.model_name = model_name
        self._coordinators = [coordinator, *(each for each, _ in more or ())]
        self._connections = [connections, *(each for _, each in more or ())]
        self._live: Mapping[str, Request] = coordinator.live
        self._live_of_each: ChainMap[str, Request] | None = None
        if more is not None:
            self._live = self._live_of_each = ChainMap(*(each.live for each in self._coordinators))
        self._now_s, self._wall_s = now_s, wall_s
        self._meter, self._story = Meter(self._live), Story(self._records)
        self._history: deque[Sample] = deque(maxlen=HISTORY)
        self._own_phases: Counter[str] = Counter()
        self._phases: Counter[str] = Counter()  # of all frontends' requests
        self._loads: Loads = {}
        self._peers: dict[str, int] = {}  # engine -> how many it has met
        self._changed: set[str] = set()  # engines, since the last tick
        self._owners: Counter[bytes | None] = Counter()  # of open pages
        self._others: Others | None = None
        self._asked_at_s = float("-inf")  # by another frontend
        self._second = NOTHING  # this frontend's last one
        self._ticking: asyncio.Task[None] | None = None
        self._ticked = asyncio.Event()
        self._is_over = False
        self.number = 0  # of ticks
        self._tick = self._snapshot = b""
        self._lists: dict[bytes | None, bytes] = {}  # by owner, of this tick
        for coordinator, connections in zip(self._coordinators, self._connections, strict=True):
            self._listen(coordinator, connections)

    def add(self, coordinator: Coordinator, connections: Connections) -> None:
        """Of one more model, where there may be several."""
        assert self._live_of_each is not None
        self._coordinators.append(coordinator)
        self._connections.append(connections)
        self._live_of_each.maps.append(coordinator.live)
        self._listen(coordinator, connections)

    def remove(self, coordinator: Coordinator, connections: Connections) -> None:
        """Its requests have ended. What is still known of its engines is told to be gone."""
        assert self._live_of_each is not None
        self._coordinators.remove(coordinator)
        self._connections.remove(connections)
        self._live_of_each.maps[:] = [each.live for each in self._coordinators]
        self._on_view(Changes(records=dict.fromkeys(connections.records)))

    def _listen(self, coordinator: Coordinator, connections: Connections) -> None:
        connections.on_view = self._on_view
        coordinator.on_lost_try = self._on_lost_try

    @property
    def _records(self) -> Mapping[str, EngineRecord]:
        first, *more = self._connections
        return first.records if not more else {k: v for each in self._connections for k, v in each.records.items()}

    @contextmanager
    def viewer(self, owner: bytes | None) -> Iterator[Viewer]:
        """One open page, which is shown requests of this owner alone; None: all. Raises FrontendFull."""
        if self._owners.total() >= VIEWERS_MAX:
            raise FrontendFull("page", f"{VIEWERS_MAX} pages are open on this frontend", "close one")
        self._owners[owner] += 1
        self._tick_on()
        try:
            yield Viewer(self, owner)
        finally:
            self._owners -= Counter([owner])
            if not self._owners and self._others is not None:
                self._others.forget()
            if not self._is_watched and self._ticking is not None:
                self._ticking.cancel()
                self._end()

    def look_at(self, ask: Ask) -> None:
        """The other frontends, too."""
        self._others = Others(ask, self._now_s)

    def part(self, owners: Sequence[bytes | None]) -> Part:
        """For a page of another frontend. Counting begins with the first question, ends WATCHED_S after the last."""
        self._asked_at_s = self._now_s()
        self._tick_on()
        second = self._second
        return Part(
            second.sample,
            second.first_tokens_ms,
            self._own_phases,
            [(*rank, rate) for rank, rate in second.made.items()],
            [(*rank, rate) for rank, rate in second.read.items()],
            list(self._story.told),
            [self._own_lists(owner) for owner in owners[:VIEWERS_MAX]],
        )

    def ended(self, request: Request) -> None:
        """Counts a request, however it ended, if somebody looks."""
        self._meter.ended(request)

    def acted(self, who: str, what: str) -> None:
        """Somebody did something to the deployment, through this frontend."""
        self._story.tell("did", [who], self._wall_s(), what)

    def close(self) -> None:
        """All viewers' events end."""
        self._is_over = True
        self._ticked.set()

    async def after(self, number: int, owner: bytes | None) -> bytes:
        """What to tell a viewer who has seen tick `number`; empty: it is over."""
        if number == self.number and not self._is_over:
            await self._ticked.wait()
        if self._is_over:
            return b""
        return (self._tick if number == self.number - 1 else self._whole()) + self._lists_of(owner)

    @property
    def _is_watched(self) -> bool:
        return bool(self._owners) or self._now_s() - self._asked_at_s < WATCHED_S

    def _tick_on(self) -> None:
        if self._ticking is not None and not self._ticking.done():  # done: by an error, which asyncio logs
            return
        self._meter.begin()
        self._second = NOTHING
        self._loads, self._peers = self._loads_now(NOTHING), self._peers_now()
        self._own_phases = Counter(request.phase.name.lower() for request in self._live.values())
        self._phases = self._own_phases
        self._snapshot = b""
        self._lists.clear()
        self.number += 1
        self._ticking = asyncio.create_task(self._run(), name="the page's feed")

    def _end(self) -> None:
        self._ticking = None
        self._meter.stop()

    async def _run(self) -> None:
        last_s = self._now_s()
        while self._is_watched:
            await asyncio.gather(asyncio.sleep(TICK_S), self._look_at_others())
            self._own_phases = await self._meter.look()
            now_s = self._now_s()
            self._make_tick(now_s - last_s)
            last_s = now_s
        self._end()

    async def _look_at_others(self) -> None:
        if self._others is not None and self._owners:
            await self._others.look(list(self._owners))

    def _make_tick(self, took_s: float) -> None:
        at_s, records = self._wall_s(), self._records
        self._second = self._meter.sample(at_s, took_s, sum(each.waiting for each in self._coordinators))
        of_all = self._of_all()
        before, self._loads = self._loads, self._loads_now(of_all)
        peers_before, self._peers = self._peers, self._peers_now()
        changed, self._changed = self._changed, set()
        if self._owners:  # else the others are not asked, and a sample would be of this frontend alone
            self._history.append(of_all.sample)
            self._tick = event(
                "tick",
                at_s=at_s,
                engines=[engine_row(records[engine_id]) for engine_id in sorted(changed & records.keys())],
                gone=sorted(changed - records.keys()),
                loads={engine_id: ranks for engine_id, ranks in self._loads.items() if ranks != before.get(engine_id)},
                peers={each: count for each, count in self._peers.items() if count != peers_before.get(each)},
                sample=of_all.sample,
                phases=self._phases,
                silent=self._silent,
                story=self._story.changes(),
            )
        self._snapshot = b""
        self._lists.clear()
        self.number += 1
        ticked, self._ticked = self._ticked, asyncio.Event()
        ticked.set()

    def _of_all(self) -> Second:
        """This frontend's second, with what the others have told of theirs."""
        found, self._phases = self._second, self._own_phases.copy()
        made, read = found.made.copy(), found.read.copy()
        for number, part in self._parts.items():
            found = found.and_of(part.sample, part.first_tokens_ms)
            self._phases.update(part.phases)
            for rates, told in ((made, part.made), (read, part.read)):
                for life, dp_rank, rate in told:
                    rates[life, dp_rank] += rate
            self._story.hear(number, part.story)
        return found._replace(made=made, read=read)

    @property
    def _parts(self) -> Mapping[int, Part]:
        return {} if self._others is None else self._others.parts

    @property
    def _silent(self) -> list[int]:
        """Frontends."""
        return [] if self._others is None else self._others.silent

    def _whole(self) -> bytes:
        """The snapshot, made once a tick at the most, and only where somebody needs it."""
        if not self._snapshot:
            self._snapshot = event(
                "snapshot",
                at_s=self._wall_s(),
                model=self.model_name,
                version=__version__,
                engines=[engine_row(record) for _, record in sorted(self._records.items())],
                loads=self._loads,
                peers=self._peers,
                history=list(self._history),
                columns=Sample.__struct_fields__,
                phases=self._phases,
                silent=self._silent,
                story=list(self._story.chapters),
            )
        return self._snapshot

    def _lists_of(self, owner: bytes | None) -> bytes:
        if owner not in self._lists:
            own = self._own_lists(owner)
            lists = [own, *(each for part in self._parts.values() for each in part.lists if each.owner == owner)]
            live, ended = (each.live for each in lists), (each.ended for each in lists)
            self._lists[owner] = event("requests", live=longest(live), ended=newest(ended))
        return self._lists[owner]

    def _own_lists(self, owner: bytes | None) -> Lists:
        now_s = self._now_s()
        return Lists(owner, live_rows(self._longest(), owner, now_s), ended_rows(self._ended(), owner, now_s))

    def _ended(self) -> Iterable[Remembered]:
        """The newest first."""
        first, *more = self._coordinators
        if not more:
            return first.ended()
        return heapq.merge(*(each.ended() for each in self._coordinators), key=_ended_at_s, reverse=True)

    def _longest(self) -> Iterable[Request]:
        """Live requests of all models, the oldest first. Both lists are merged as far as they are read: thousands are
        there, and some tens are shown."""
        first, *more = (each.live.values() for each in self._coordinators)
        return first if not more else heapq.merge(first, *more, key=lambda request: request.received_at_s)

    def _peers_now(self) -> dict[str, int]:
        return {
            record.id: len(each.endpoints.met.met_with(record.life))
            for each in self._connections
            for record in each.records.values()
        }

    def _loads_now(self, second: Second) -> Loads:
        return {
            engine.id: [
                [
                    endpoint.requests_of_clients,
                    endpoint.load[1],
                    second.made[engine.life, endpoint.dp_rank],
                    second.read[engine.life, endpoint.dp_rank],
                ]
                for endpoint in engine.endpoints
            ]
            for each in self._connections
            for engine in each.engines
        }

    def _on_view(self, changes: Changes) -> None:
        self._story.on_records(changes.records, self._wall_s())
        self._snapshot = b""  # who comes next within this tick is told of it in no tick
        if self._owners:
            self._changed |= changes.records.keys()

    def _on_lost_try(self, request: Request, pair: Pair) -> None:
        blamed = [endpoint.life for endpoint in pair.endpoints if endpoint.life in request.failed_on]
        self._story.tell("moved" if request.emitted_ids else "retried", blamed or [pair.name], self._wall_s())


def _ended_at_s(request: Remembered) -> float:
    return max(request.timeline.values(), default=request.received_at_s)


class Viewer:
    """One open page's place in the feed."""

    def __init__(self, feed: Feed, owner: bytes | None) -> None:
        self._feed, self._owner = feed, owner
        self._seen = -2  # no tick: the first is a snapshot

    async def next(self) -> bytes:
        """Events that bring the page up to date; empty at the end."""
        events = await self._feed.after(self._seen, self._owner)
        self._seen = self._feed.number
        return events
