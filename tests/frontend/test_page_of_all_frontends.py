"""The page of any frontend tells of the requests of all: rates added, lists merged, and who does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from many_engines import ManyEngines
from scripted import feed_of, until
from test_page_feed import Listing, events_of, feed_tasks, request

from disagg.frontend.page import feed as module
from disagg.frontend.page.feed import NOTHING, Feed, Viewer
from disagg.frontend.page.others import Part
from disagg.frontend.page.story import CHAPTERS, OTHERS_MAX, TOLD_CHAPTERS, Story
from disagg.routing.connections import Connections

FRONTENDS, RANKS = 4, 1000
LOOK_S = 0.1
TICK_MS_MAX = 150  # of CPU, on a busy machine
PART_BYTES_MAX = 150_000


class Beside:
    """Frontends as they ask each other, without the way there. `away`: who does not answer. A look at the others takes
    LOOK_S of their clock: what the machine does meanwhile makes no difference."""

    def __init__(self, count: int, connections: Connections | None = None) -> None:
        self.listings: list[Any] = [Listing() for _ in range(count)]
        self.now = 100.0
        there = connections or Connections(b"")
        self.feeds = [Feed("m", listing, there, now_s=self.now_s) for listing in self.listings]
        self.away: set[int] = set()
        self.bytes = 0
        for number, feed in enumerate(self.feeds):
            feed.look_at(lambda owners, _limit_s, asker=number: self._parts(asker, owners))

    def now_s(self) -> float:
        self.now += 1e-6
        return self.now

    async def _parts(self, asker: int, owners: Sequence[bytes | None]) -> dict[int, Part | None]:
        self.now += LOOK_S
        found: dict[int, Part | None] = {}
        for number, feed in enumerate(self.feeds):
            if number != asker:
                sent = msgspec.msgpack.encode(feed.part(owners)) if number not in self.away else None
                self.bytes = max(self.bytes, len(sent or b""))
                found[number] = msgspec.msgpack.decode(sent, type=Part) if sent else None
        return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.02)


async def told(viewer: Viewer, condition: Any) -> tuple[Any, Any]:
    """The first tick, with its lists, of which that holds."""
    async with asyncio.timeout(20):
        while True:
            tick, lists = events_of(await viewer.next())
            if condition(tick, lists):
                return tick, lists


def ids(lists: Any, name: str = "live") -> list[str]:
    return [each["id"] for each in lists[name]]


async def test_requests_rates_and_phases_are_of_all() -> None:
    beside = Beside(3)
    with beside.feeds[0].viewer(None) as viewer, beside.feeds[0].viewer(b"A") as of_a:
        await told(viewer, lambda *_: all(feed._ticking for feed in beside.feeds))
        now_s = beside.now
        for number, listing in enumerate(beside.listings):
            for owner in (b"A", b"B"):
                live = request(f"{number}{owner.decode()}", 10, owner)
                live.received_at_s = now_s - 10 + number
                live.timeline["first_token"] = now_s - 10 + number + 0.1 * (number + 1)
                listing.live[live.id] = live
        tick, lists = await told(viewer, lambda tick, _: tick["type"] == "tick" and tick["sample"][5] == 6)
        assert ids(lists) == ["0A", "0B", "1A", "1B", "2A", "2B"]
        assert tick["phases"] == {"decoding": 6}
        _, lists = await told(of_a, lambda _, lists: len(lists["live"]) == 3)
        assert ids(lists) == ["0A", "1A", "2A"]
        seen = [sample for sample in beside.feeds[0]._history if sample.ttft_ms_p99 is not None]
        assert max(sample.ttft_ms_p99 or 0 for sample in seen) == pytest.approx(300)

        ends = []
        for number in (1, 0, 2):
            ended = beside.listings[number].live.pop(f"{number}A")
            ended.timeline["finish"] = beside.now
            beside.listings[number]._ended = [ended.remembered()]
            ends.append(ended.id)
            await asyncio.sleep(0.05)
        _, lists = await told(viewer, lambda _, lists: len(lists["ended"]) == 3)
        assert ids(lists, "ended") == ends[::-1]


async def test_tokens_of_a_rank_are_those_of_all() -> None:
    connections = ManyEngines(16)
    record = next(each for each in connections.records.values() if each.role == "decode")
    feed = feed_of(connections)
    made, read = [(record.life, 3, 7)], [(record.life, 3, 70)]
    part = Part(NOTHING.sample, [], {}, made, read, [], [])

    async def two(_owners: object, _limit_s: float) -> dict[int, Part | None]:
        return {1: part, 2: part}

    feed.look_at(two)
    with feed.viewer(None) as viewer:
        tick, _ = await told(viewer, lambda tick, _: tick["type"] == "tick")
    assert [load[2:] for load in tick["loads"][record.id]][2:5] == [[0, 0], [14, 140], [0, 0]]


async def test_one_that_does_not_answer_is_told_and_comes_back() -> None:
    beside = Beside(3)
    for number, listing in enumerate(beside.listings):
        listing.live[str(number)] = request(str(number), 1)
    with beside.feeds[0].viewer(None) as viewer:
        await told(viewer, lambda _, lists: len(lists["live"]) == 3)
        beside.away = {2}
        tick, lists = await told(viewer, lambda tick, _: tick["silent"])
        assert (tick["silent"], ids(lists)) == ([2], ["0", "1"])
        with beside.feeds[0].viewer(None) as another:
            snapshot, _ = events_of(await another.next())
            assert snapshot["silent"] == [2]
        beside.away = set()
        tick, lists = await told(viewer, lambda tick, lists: not tick["silent"] and len(lists["live"]) == 3)


async def test_what_nobody_asks_for_any_more_is_counted_no_longer() -> None:
    beside = Beside(2)
    with beside.feeds[0].viewer(None) as viewer:
        await told(viewer, lambda *_: len(feed_tasks()) == 2)
    await asyncio.sleep(0.1)
    assert len(feed_tasks()) == 1  # it might be asked again
    beside.now += module.WATCHED_S
    await until(lambda: feed_tasks() == [])
    assert not beside.feeds[1]._meter.is_on
    with beside.feeds[1].viewer(None) as viewer:  # one ended by itself, and begins anew
        await told(viewer, lambda tick, _: tick["type"] == "tick")


async def test_lost_tries_of_others_are_told_once_and_not_back() -> None:
    one, other = Story({}), Story({})
    one.tell("moved", ["decode-0#1"], 1.0)
    other.hear(1, one.told)
    other.hear(1, one.told)
    assert [(each.kind, each.frontend, each.count) for each in other.changes()] == [("moved", 1, 1)]
    one.tell("moved", ["decode-0#1"], 1.5)
    other.tell("moved", ["decode-0#1"], 1.5)  # its own is a chapter of its own
    other.hear(1, one.told)
    assert sorted((each.frontend is None, each.count) for each in other.changes()) == [(False, 2), (True, 1)]
    assert len(other.chapters) == 2
    assert [each.frontend for each in other.told] == [None]
    for number in range(3 * CHAPTERS):
        one.tell("retried", [f"decode-{number}"], 10.0 * number)
        other.hear(1, one.told)
    assert len(other.chapters) == CHAPTERS


def test_what_was_done_through_another_is_told() -> None:
    one, other = Story({}), Story({})
    for what in ("drain decode-0", "drain decode-1"):
        one.tell("did", ["admin"], 1.0, what)
    other.hear(1, one.told)
    assert [(each.kind, each.detail, each.frontend) for each in other.changes()] == [
        ("did", "drain decode-0", 1),
        ("did", "drain decode-1", 1),
    ]


def test_many_frontends_are_heard_once() -> None:
    """More chapters than a story keeps."""
    others, here = [Story({}) for _ in range(CHAPTERS // TOLD_CHAPTERS + 3)], Story({})
    for number, other in enumerate(others):
        for index in range(2 * TOLD_CHAPTERS):
            other.tell("moved", [f"decode-{index}"], 10.0 * index + number)
    for _ in range(2):
        here.changes()
        for number, other in enumerate(others):
            here.hear(number, other.told)
    assert here.changes() == []
    for number in range(2 * OTHERS_MAX):
        here.hear(number, ())
    assert len(here._of_others) == OTHERS_MAX


async def test_charts_are_of_all_or_there_is_nothing() -> None:
    """What it counts while only another's page asks is its own requests alone."""
    feed = Beside(1).feeds[0]
    feed.part([None])
    number = feed.number
    await until(lambda: feed.number > number + 2)
    assert not feed._history


async def test_four_frontends_of_a_thousand_ranks_are_bounded_work() -> None:
    connections = ManyEngines(RANKS)
    beside = Beside(FRONTENDS, connections)
    lives = [record.life for record in connections.records.values()]
    with beside.feeds[0].viewer(None) as viewer:
        await told(viewer, lambda *_: all(feed._ticking for feed in beside.feeds))
        for number, listing in enumerate(beside.listings):
            for index in range(RANKS):
                live = request(f"{number}-{index}", 10)
                assert live.facts.decode is not None
                live.facts.decode = live.facts.decode._replace(life=lives[index // 8], dp_rank=index % 8)
                live.facts.prefill = live.facts.decode
                listing.live[live.id] = live
        began_s, number = time.process_time(), beside.feeds[0].number
        while beside.feeds[0].number < number + 10:
            await viewer.next()
        spent_ms = (time.process_time() - began_s) * 1e3 / 10
    print(f"{FRONTENDS} frontends of {RANKS} ranks: {spent_ms:.0f} ms CPU a second in all, {beside.bytes} bytes a part")
    assert spent_ms < FRONTENDS * TICK_MS_MAX
    assert 20_000 < beside.bytes < PART_BYTES_MAX
