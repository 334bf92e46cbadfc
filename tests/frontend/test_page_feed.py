"""The page's feed: nothing while nobody looks, once for all who do, to each what is his, and a story."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from scripted import feed_of, until

from disagg.coordinator.facts import Facts
from disagg.coordinator.phases import Phase
from disagg.coordinator.remembered import Remembered
from disagg.coordinator.request import NoText, Request
from disagg.errors import FrontendFull
from disagg.frontend.page import feed as module
from disagg.frontend.page.feed import Feed
from disagg.frontend.page.meter import Meter
from disagg.frontend.page.rows import ended_rows, live_rows
from disagg.frontend.page.story import CHAPTERS, SUBJECTS, Story
from disagg.registry.records import EngineRecord, State
from disagg.registry.table import Table
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.endpoints import RankId

PREFILL, DECODE = RankId("prefill-0", "prefill-0#1", 0), RankId("decode-0", "decode-0#1", 1)


def record(name: str = "decode-0", state: State = State.READY, **more: Any) -> EngineRecord:
    return EngineRecord(id=name, role=Role.DECODE, state=state, **({"incarnation": 1} | more))


def request(name: str, tokens: int = 0, owner: bytes = b"", **facts: Any) -> Request:
    found = Request(name, [7] * 100, {}, 999, NoText(), received_at_s=100.0, owner=owner)
    found.phase = Phase.DECODING if tokens else Phase.QUEUED
    found.emitted_ids += [7] * tokens
    found.facts = Facts(prefill=PREFILL, decode=DECODE, **facts)
    found.timeline["first_token"] = 100.25
    return found


def events_of(data: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in data.decode().split("\n") if line.startswith("data: ")]


def feed_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "the page's feed"]


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Feed:
    monkeypatch.setattr(module, "TICK_S", 0.01)
    return feed_of(Connections(b""))


async def test_nothing_runs_and_nothing_is_kept_while_nobody_looks(feed: Feed) -> None:
    feed.ended(request("early", 5))
    assert feed_tasks() == []
    with feed.viewer(None) as viewer:
        (snapshot, _) = events_of(await viewer.next())
        assert (snapshot["type"], snapshot["history"]) == ("snapshot", [])
        assert feed_tasks() == ["the page's feed"]
        assert events_of(await viewer.next())[0]["sample"][1] == 0
    await until(lambda: feed_tasks() == [])
    number = feed.number
    await asyncio.sleep(0.05)
    assert feed.number == number


class Listing:
    """A coordinator that counts who of its ended requests is looked at."""

    waiting = 0

    def __init__(self, *live: Request, ended: Sequence[Remembered] = ()) -> None:
        self.live = {each.id: each for each in live}
        self.looked_at, self._ended = 0, ended

    def ended(self) -> Iterator[Remembered]:
        for each in self._ended:
            self.looked_at += 1
            yield each


def _ended(name: str, at_s: float) -> Remembered:
    found = request(name, 1)
    found.timeline["finish"] = at_s
    return found.remembered()


async def test_of_several_models_the_oldest_run_first_and_the_newest_ended_first() -> None:
    def live(name: str, at_s: float) -> Request:
        found = request(name, 1)
        found.received_at_s = at_s
        return found

    first = Listing(live("1", 10.0), live("4", 40.0), ended=[_ended(f"a{n}", 10_000 - 2.0 * n) for n in range(500)])
    second = Listing(live("2", 20.0), live("3", 30.0), ended=[_ended(f"b{n}", 9999 - 2.0 * n) for n in range(500)])
    coordinators: list[Any] = [first, second]
    one, other = ((each, Connections(b"")) for each in coordinators)
    feed = Feed("a, b", one[0], one[1], more=[other])
    with feed.viewer(None) as viewer:
        _, lists = events_of(await viewer.next())
    assert [each["id"] for each in lists["live"]] == ["1", "2", "3", "4"]
    assert [each["id"] for each in lists["ended"]][:4] == ["a0", "b0", "a1", "b1"]
    assert first.looked_at + second.looked_at < 50  # of a thousand


async def test_all_viewers_get_what_was_made_once(feed: Feed) -> None:
    with feed.viewer(b"one") as first, feed.viewer(b"one") as second:
        await first.next(), await second.next()
        told = await asyncio.gather(first.next(), second.next())
        assert [events_of(each)[0]["type"] for each in told] == ["tick", "tick"]
        assert told[0] == told[1]
    made = []
    feed_event = module.event
    with pytest.MonkeyPatch.context() as patch, feed.viewer(None), feed.viewer(None):
        patch.setattr(module, "event", lambda kind, **fields: made.append(kind) or feed_event(kind, **fields))  # type: ignore[func-returns-value]
        number = feed.number
        await until(lambda: feed.number > number + 3)
    assert set(made) == {"tick"}  # one each, and no list that nobody asks for


async def test_a_viewer_who_was_too_slow_gets_a_snapshot_and_no_backlog(feed: Feed) -> None:
    with feed.viewer(None) as viewer:
        await viewer.next()
        number = feed.number
        await until(lambda: feed.number > number + 5)
        (snapshot, _) = events_of(await viewer.next())
        assert snapshot["type"] == "snapshot"
        assert len(snapshot["history"]) >= 5
        assert events_of(await viewer.next())[0]["type"] == "tick"


async def test_pages_are_counted(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VIEWERS_MAX", 1)
    with feed.viewer(None), pytest.raises(FrontendFull), feed.viewer(None):
        pass
    with feed.viewer(None):
        pass


async def test_its_end_ends_every_viewer(feed: Feed) -> None:
    with feed.viewer(None) as viewer:
        await viewer.next()
        waiting = asyncio.create_task(viewer.next())
        await asyncio.sleep(0)
        feed.close()
        assert await asyncio.wait_for(waiting, 5) == b""


async def test_engines_come_change_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.01)
    connections, table = Connections(b""), Table()
    feed = feed_of(connections)
    table.put(record())
    watch = table.watch()
    connections.apply(await anext(watch))
    with feed.viewer(None) as viewer:
        (snapshot, _) = events_of(await viewer.next())
        assert [engine["state"] for engine in snapshot["engines"]] == ["ready"]
        assert snapshot["story"] == []
        table.put(record(state=State.DEAD, detail="killed\nits last lines"))
        table.put(record("decode-1", State.STARTING))
        connections.apply(await anext(watch))
        tick = await next_change(viewer)
        assert [(engine["id"], engine["state"]) for engine in tick["engines"]] == [
            ("decode-0", "dead"),
            ("decode-1", "starting"),
        ]
        told = [(chapter["kind"], chapter["subjects"], chapter["detail"]) for chapter in tick["story"]]
        assert told == [("dead", ["decode-0"], "killed"), ("starting", ["decode-1"], "")]
        table.remove("decode-1")
        table.add_met("prefill-0#1", "decode-0#1")
        connections.apply(await anext(watch))
        tick = await next_change(viewer)
        assert (tick["engines"], tick["gone"], tick["peers"]) == ([], ["decode-1"], {"decode-0": 1})


async def test_who_comes_within_a_tick_knows_what_has_changed_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks here, and another frontend's page keeps the ticks going."""
    monkeypatch.setattr(module, "TICK_S", 100.0)
    connections, table = Connections(b""), Table()
    feed = feed_of(connections)
    table.put(record())
    watch = table.watch()
    connections.apply(await anext(watch))
    feed.part([None])
    for state in (State.READY, State.DEAD):
        table.put(record(state=state, detail="news"))
        connections.apply(await anext(watch))
        with feed.viewer(None) as viewer:
            (snapshot, _) = events_of(await viewer.next())
            assert [engine["state"] for engine in snapshot["engines"]] == [state]


async def next_change(viewer: module.Viewer) -> Any:
    while True:
        (tick, _) = events_of(await viewer.next())
        if tick["engines"] or tick["gone"]:
            return tick


@pytest.mark.parametrize(("owner", "seen"), [(None, ["a", "b", "c"]), (b"A", ["a"]), (b"", []), (b"C", [])])
def test_a_key_shows_its_own_requests(owner: bytes | None, seen: list[str]) -> None:
    requests = [request("a", 1, b"A"), request("b", 1, b"B"), request("c", 1)]
    assert [row["id"] for row in live_rows(requests, owner, 101.0)] == seen
    assert [row["id"] for row in ended_rows([each.remembered() for each in requests], owner, 101.0)] == seen


def test_lists_are_short_and_an_id_too() -> None:
    rows = live_rows([request(str(n), 1, client_request_id="x" * 999) for n in range(50)], None, 101.0)
    assert len(rows) == 20
    assert len(rows[0]["client_id"]) == 100


async def test_tokens_are_counted_by_rank_and_once() -> None:
    old, live = request("old", 50), {}
    live["old"] = old
    meter = Meter(live)
    meter.begin()
    live["new"] = new = request("new", 10)
    quick = request("quick", 5)
    quick.phase = Phase.FAILED
    old.emitted_ids += [7] * 3
    assert await meter.look() == {"decoding": 2}
    meter.ended(quick)
    sample, made, read, first_ms = meter.sample(1.0, took_s=2.0, queued=0)
    assert made == {("decode-0#1", 1): (3 + 10 + 5) / 2}
    assert read == {("prefill-0#1", 0): 100}
    assert first_ms == [250.0, 250.0]
    assert (sample.made, sample.read, sample.ended, sample.failed, sample.running) == (9.0, 100.0, 0.5, 0.5, 2)
    assert (sample.ttft_ms_p50, sample.ttft_ms_p99) == (250.0, 250.0)
    new.emitted_ids.append(7)
    live.pop("new")
    meter.ended(new)
    await meter.look()
    sample, made, _, _ = meter.sample(2.0, took_s=1.0, queued=0)
    assert made == {("decode-0#1", 1): 1}
    assert sample.ttft_ms_p50 is None


def test_a_death_between_two_views_is_told() -> None:
    story = Story({"decode-0": record()})
    story.on_records({"decode-0": record(state=State.STARTING, incarnation=2, restarts=1)}, 1.0)
    assert [chapter.kind for chapter in story.chapters] == ["dead", "starting"]
    story.on_records({"decode-0": record(incarnation=2, restarts=1)}, 9.0)
    story.on_records({"decode-0": record(incarnation=2, restarts=1, lane="tcp")}, 9.0)  # no news
    story.on_records({"decode-0": record(state=State.DEAD, incarnation=2, restarts=1)}, 19.0)
    story.on_records({"decode-0": record(state=State.DEAD, incarnation=2, restarts=2)}, 19.0)
    story.on_records({"decode-0": record(state=State.STARTING, incarnation=3, restarts=2)}, 19.0)
    assert [chapter.kind for chapter in story.chapters][2:] == ["ready", "dead", "starting"]


def test_the_first_engines_are_no_news() -> None:
    story = Story({})
    story.on_records({f"decode-{n}": record(f"decode-{n}") for n in range(1000)}, 1.0)
    assert not story.chapters


def test_what_is_alike_is_told_once_and_the_story_is_bounded() -> None:
    story = Story({})
    for n in range(1000):
        story.tell("moved", [f"decode-{n % 9}#1"], 1.0)
    (chapter,) = story.changes()
    assert (chapter.count, len(chapter.subjects)) == (1000, SUBJECTS)
    assert story.changes() == []
    for n in range(3 * CHAPTERS):
        story.tell("dead", [f"decode-{n}"], float(10 * n))
    assert len(story.chapters) == CHAPTERS
    assert len(story.changes()) <= CHAPTERS
    assert msgspec.json.encode(list(story.chapters))
