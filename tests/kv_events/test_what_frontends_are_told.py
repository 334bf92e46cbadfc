"""Over the plane: snapshots while things change, frontends that do not read, events that are missing or come twice."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from disagg.kv_events.blocks import BlockHasher
from disagg.kv_events.book import KvBook
from disagg.kv_events.changes import CLEARED, STORED, Change
from disagg.kv_events.events import At, Begun, Event, Removed, Stored, Telling, Tier, encode_telling
from disagg.plane import kv_telling
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.plane.engine import EngineFacts
from disagg.plane.server import PlaneServer
from disagg.process.members import Members, Report
from disagg.roles import Role
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.kv_feed import KvFeed
from tests.kv_events.two_indexes import TwoIndexes

SECRET, BLOCK = b"s" * 32, 4
HASHER = BlockHasher(SECRET, BLOCK)
TOLD_S = 20.0  # on a busy machine; some 20 ms on an idle one


def prompt(number: int, blocks: int = 3) -> list[int]:
    return [number * 1000 + at for at in range(blocks * BLOCK)]


def stored(number: int) -> list[Event]:
    ids = array("I", prompt(number)).tobytes()
    return [At(number, 0, ids), Stored(number, 3 * BLOCK, Tier.DEVICE)]


class Frontend:
    def __init__(self, ranks: int = 1) -> None:
        self.engine, nothing, self.index = Engine("e", "e#1", Role.PREFILL, 0), None, TwoIndexes()
        self.engine.endpoints = [
            Endpoint(self.engine, rank, "", nothing, nothing, slot=rank)  # type: ignore[arg-type]
            for rank in range(ranks)
        ]
        self.asked = 0
        self.feed = KvFeed(self.engine, self.index, BLOCK, self._ask)

    def _ask(self) -> None:
        self.asked += 1

    def held(self, dp_rank: int = 0) -> set[tuple[int, ...]]:
        return set(self.index.exact[dp_rank])

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(TOLD_S):
            while self.asked < times:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert self.asked == times

    async def until(self, blocks: int, dp_rank: int = 0) -> None:
        async with asyncio.timeout(TOLD_S):
            while len(self.held(dp_rank)) != blocks:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def connected(
    book: KvBook, frontend: Frontend, others: Any = None
) -> AsyncIterator[tuple[PlaneServer, PlaneClient]]:
    engine: Any = None
    server = PlaneServer(engine, EngineFacts(ranks=2), 1, SECRET, others=others, kv=book)
    address = f"127.0.0.1:{await server.start('127.0.0.1')}"
    client = PlaneClient(address, 1, SECRET, lambda _why: None, on_kv=frontend.feed.on_kv)
    await client.connect()
    try:
        yield server, client
    finally:
        client.close()
        server.close()


def begun(dp_rank: int = 0) -> KvBook:
    book = KvBook(SECRET, BLOCK)
    book.heard(dp_rank, [Begun(dp_rank)], lambda: None)
    return book


async def test_a_rank_that_begins_later_is_known_from_then_on() -> None:
    book, frontend = begun(), Frontend(2)
    async with connected(book, frontend):
        book.heard(0, stored(1), lambda: None)
        await frontend.until(3)
        assert [endpoint.tells_cache for endpoint in frontend.engine.endpoints] == [True, False]
        book.heard(1, [Begun(1), *stored(2)], lambda: None)
        await frontend.until(3, dp_rank=1)
        assert frontend.engine.endpoints[1].tells_cache


async def test_a_frontend_that_does_not_read_is_told_all_anew_once_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_telling, "BEHIND_BYTES", 0)
    book, frontend = begun(), Frontend()
    async with connected(book, frontend) as (server, _client):
        await frontend.until(0)
        async with asyncio.timeout(TOLD_S):
            while not frontend.feed.is_whole:
                await asyncio.sleep(0.005)
        (session,) = server.sessions
        assert session.connection is not None
        real, backlog = session.connection, [1]

        class Full:
            send = staticmethod(real.send)

            @property
            def unsent_bytes(self) -> int:
                return backlog[0]

        session._kv._connection = Full()  # type: ignore[assignment, union-attr]
        for number in range(1, 4):
            book.heard(0, stored(number), lambda: None)
        book.flush()
        await asyncio.sleep(0.05)
        assert not frontend.held(), "it was sent to who does not read"
        backlog[0] = 0
        await frontend.until(9)
        assert frontend.feed.gaps == {}


async def test_what_a_scheduler_on_another_node_says_goes_through_the_first_host() -> None:
    book, frontend, asked = begun(), Frontend(2), list[int]()
    others = Members(2, lambda _leg, _stage: None, lambda _why: None, kv=book)
    async with connected(book, frontend, others) as (_, client):
        report = await Report.begin(
            1, client.address, 1, SECRET, list, lambda _why: None, lambda _life: None, asked.append
        )
        assert report.cached(1, encode_telling(Telling(0.0, [Begun(1), *stored(1)])))
        await frontend.until(3, dp_rank=1)
        report.cached(1, encode_telling(Telling(0.0, [Removed(77, BLOCK, Tier.DEVICE)])))
        async with asyncio.timeout(TOLD_S):
            while not asked:
                await asyncio.sleep(0.005)
        await frontend.until(0, dp_rank=1)
        assert asked == [1]
        report.cached(1, encode_telling(Telling(0.0, [Begun(1), *stored(2)])))
        await frontend.until(3, dp_rank=1)
        report.cached(1, b"")  # it is not heard any more
        await frontend.until(0, dp_rank=1)
        assert not frontend.engine.endpoints[1].tells_cache
        report._telling.cancel()
        report._first.close()


def changed(begins: int, number: int) -> m.KvChanged:
    path = HASHER.path(prompt(number))
    return m.KvChanged(0, begins, [Change(STORED, Tier.DEVICE, 0, path.tobytes(), len(path))], 0.0)


async def test_what_comes_twice_changes_nothing_and_what_is_missing_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("disagg.routing.kv_feed.AGAIN_S", 0.01)
    frontend = Frontend()
    on_kv = frontend.feed.on_kv
    on_kv(m.KvStart(1, BLOCK, {0: 7}))
    on_kv(m.KvHeld(0, [], is_last=True))
    on_kv(changed(7, 1))
    on_kv(changed(7, 1))
    assert (len(frontend.held()), frontend.asked) == (3, 0)
    on_kv(changed(9, 2))
    on_kv(changed(10, 3))
    assert (frontend.held(), frontend.asked, frontend.feed.gaps) == (set(), 0, {0: 1})
    await frontend.until_asked(1)
    on_kv(m.KvStart(1, BLOCK, {0: 11}))
    on_kv(changed(11, 4))
    assert len(frontend.held()) == 3
    on_kv(m.KvChanged(0, 12, [Change(CLEARED)], 0.0))
    on_kv(changed(13, 5))
    on_kv(m.KvChanged(0, 12, [Change(CLEARED)], 0.0))
    assert len(frontend.held()) == 3
    frontend.feed.close()
    on_kv(changed(14, 6))
    assert len(frontend.held()) == 3


async def test_blocks_of_another_size_and_paths_that_cannot_be_are_not_believed() -> None:
    frontend = Frontend()
    frontend.feed.on_kv(m.KvStart(1, 2 * BLOCK, {0: 0}))
    frontend.feed.on_kv(changed(0, 1))
    assert "8 tokens, and ours 4" in frontend.feed.why_not
    frontend.feed.on_kv(m.KvStart(1, BLOCK, {0: 0}))
    frontend.feed.on_kv(m.KvChanged(0, 0, [Change(STORED, Tier.DEVICE, 3, b"", 1)], 0.0))
    assert (frontend.held(), frontend.engine.endpoints[0].tells_cache) == (set(), False)
    frontend.feed.on_kv(m.KvStart(1, 0, {}, "it has no prefix cache"))
    assert frontend.feed.why_not == "it has no prefix cache"


NO_ROOT = Change(STORED, Tier.DEVICE, 9, b"12345678", 1)  # it shares keys with one that was not told


@pytest.mark.parametrize(
    "frame",
    [
        m.KvStart(1, BLOCK, {7: 0}),
        m.KvStart(1, BLOCK, {-1: 0}),
        m.KvHeld(0, [NO_ROOT]),
        m.KvHeld(-1, [NO_ROOT]),
        m.KvHeld(0, [Change("moved", Tier.DEVICE, 0, b"12345678", 1)]),
        m.KvChanged(0, 7, [NO_ROOT], 0.0),
        m.KvChanged(3, 7, [], 0.0),
    ],
    ids=str,
)
async def test_what_cannot_be_read_is_asked_for_anew_with_pauses_that_grow(
    frame: m.KvStart | m.KvHeld | m.KvChanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("disagg.routing.kv_feed.AGAIN_S", 0.01)
    frontend = Frontend()
    on_kv = frontend.feed.on_kv
    for times in (1, 2, 3):
        on_kv(m.KvStart(1, BLOCK, {0: 7}))
        on_kv(frame)
        on_kv(changed(7, 1))
        assert (frontend.held(), frontend.asked) == (set(), times - 1)
        await frontend.until_asked(times)
    assert frontend.feed._pause_s == 0.04
    on_kv(m.KvStart(1, BLOCK, {0: 7}))
    on_kv(changed(7, 1))
    assert len(frontend.held()) == 3
    on_kv(frame)
    frontend.feed.close()
    await frontend.until_asked(3)
