"""Frontends that are not the controller's: numbers and leases are their own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import NamedTuple

import msgspec
import pytest
from msgspec.structs import replace
from test_a_table_through_a_store import KEYS, LEASE_S, Flaky, engine, published, until

from disagg.registry.announcer import Announcer
from disagg.registry.follower import Follower
from disagg.registry.keys import OUTSIDE, Keys
from disagg.registry.memory_store import Memory, MemoryLease, MemoryStore
from disagg.registry.records import FrontendRecord, SealedSpec
from disagg.registry.store import StoreLost

THEIRS = Keys(KEYS.namespace, KEYS.deployment)  # `disagg frontend` need not know the model


PEER = "10.0.0.9:7"


class Drawn(Random):
    """Draws these numbers."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(1)
        self._numbers = list(numbers)

    def randrange(self, *_: int, **__: int) -> int:  # type: ignore[override]
        return self._numbers.pop(0)


class Announcing(NamedTuple):
    announcer: Announcer
    taken: list[int]
    running: asyncio.Task[None]

    async def kill(self, memory: Memory) -> None:
        """Its lease runs out."""
        self.running.cancel()
        await asyncio.sleep(0)
        lease_of(memory, THEIRS.frontend(300)).end()


@asynccontextmanager
async def announcing(store: MemoryStore, drawn: Random) -> AsyncIterator[Announcing]:
    taken: list[int] = []
    made = Announcer(store, THEIRS, LEASE_S, taken.append, drawn)
    await made.claim()
    running = asyncio.create_task(made.run())
    yield Announcing(made, taken, running)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await made.end()


def listening(number: int) -> FrontendRecord:
    return FrontendRecord(number=number, url="http://h:1/v1", pid=7, peer=PEER)


def peer_in(following: Follower) -> str | None:
    record = following.frontends.get(300)
    return None if record is None else record.peer


def lease_of(memory: Memory, key: str) -> MemoryLease:
    lease = memory.owners[key]
    assert isinstance(lease, MemoryLease)
    return lease


async def test_numbers_are_not_taken_twice() -> None:
    memory = Memory()
    async with announcing(MemoryStore(memory), Drawn(300)), announcing(MemoryStore(memory), Drawn(300, 300, 301)):
        assert sorted(memory.entries) == [THEIRS.frontend(300), THEIRS.frontend(301)]
    assert not memory.entries
    made = Announcer(MemoryStore(memory), THEIRS, LEASE_S, lambda _: None, Random(random.random()))
    numbers = [await made.claim() for _ in range(50)]
    assert len(set(numbers)) == 50
    assert min(numbers) >= OUTSIDE, "those below are the controller's"
    assert max(numbers) < 1 << 16, "four digits of a request's id"


async def test_it_is_there_once_it_listens_and_goes_when_its_lease_does() -> None:
    memory = Memory()
    async with published(memory) as (_, _, _, following):
        async with announcing(MemoryStore(memory), Drawn(300)) as one:
            made = one.announcer
            await until(lambda: peer_in(following) == "")
            await made.put_frontend(listening(300))
            await until(lambda: peer_in(following) == PEER)
            await made.remove_frontend(300)
            await until(lambda: peer_in(following) == "")
            await one.kill(memory)
            await until(lambda: not following.frontends)
        assert len(following.records) == 2


async def test_a_lease_that_was_lost_is_replaced_and_all_put_anew() -> None:
    memory = Memory()
    store = Flaky(memory)
    async with announcing(store, Drawn(300)) as (made, taken, _):
        await made.put_frontend(listening(300))
        await until(lambda: b"10.0.0.9" in memory.entries[THEIRS.frontend(300)].value)
        store.is_away = True
        lease_of(memory, THEIRS.frontend(300)).end()
        await asyncio.sleep(0.05)
        assert not memory.entries
        store.is_away = False
        await until(lambda: b"10.0.0.9" in getattr(memory.entries.get(THEIRS.frontend(300)), "value", b""))
        assert taken == []


async def test_a_store_that_is_lost_again_while_all_is_put_anew_has_it_later() -> None:
    memory = Memory()
    store = Flaky(memory)
    async with announcing(store, Drawn(300)) as (made, taken, _):
        await made.put_frontend(listening(300))
        await until(lambda: b"10.0.0.9" in memory.entries[THEIRS.frontend(300)].value)
        store.snapshots_to_lose = 1
        lease_of(memory, THEIRS.frontend(300)).end()
        await until(lambda: b"10.0.0.9" in getattr(memory.entries.get(THEIRS.frontend(300)), "value", b""))
        assert (store.snapshots_to_lose, taken) == (0, [])
        held = [lease for lease in store._leases if not lease.lost.is_set()]
        assert held == [lease_of(memory, THEIRS.frontend(300))], "the one that came to nothing is given back"


async def test_what_is_put_while_a_write_is_under_way_is_said_too() -> None:
    memory = Memory()
    store = Flaky(memory)
    async with announcing(store, Drawn(300)) as (made, *_):
        for is_lost in (False, True):
            store.hold, store.is_held = asyncio.Event(), asyncio.Event()
            await made.put_frontend(listening(300))
            await store.is_held.wait()
            await made.remove_frontend(300)
            held, store.hold, store.is_away = store.hold, None, is_lost
            held.set()
            await asyncio.sleep(0.01)
            store.is_away = False
            await until(lambda: msgspec.json.decode(memory.entries[THEIRS.frontend(300)].value)["url"] == "")


async def test_a_number_that_was_taken_meanwhile_is_left_to_the_other() -> None:
    memory = Memory()
    store = Flaky(memory)
    async with announcing(store, Drawn(300, 302)) as (made, taken, _):
        store.is_away = True
        lease_of(memory, THEIRS.frontend(300)).end()
        async with announcing(MemoryStore(memory), Drawn(300)) as (other, *_):
            await other.put_frontend(listening(300))
            store.is_away = False
            await until(lambda: taken == [300])
            await made.put_frontend(listening(await made.claim()))
            await until(lambda: b"10.0.0.9" in memory.entries[THEIRS.frontend(302)].value)
            there = msgspec.json.decode(memory.entries[THEIRS.frontend(300)].value, type=FrontendRecord)
            assert there.run == other._run
    assert not memory.entries


async def test_nothing_is_said_of_a_number_that_is_not_held() -> None:
    memory = Memory()
    async with announcing(MemoryStore(memory), Drawn(300)) as (made, *_):
        await made.give_up(300)
        await made.put_frontend(listening(300))
        await asyncio.sleep(0.02)
        assert PEER.encode() not in memory.entries[THEIRS.frontend(300)].value


async def test_a_store_that_is_away_is_told_at_once() -> None:
    store = Flaky(Memory())
    store.is_away = True
    with pytest.raises(StoreLost):
        await Announcer(store, THEIRS, LEASE_S, lambda _: None, Random(1)).claim()


async def test_a_controller_that_puts_all_anew_leaves_them_alone() -> None:
    memory = Memory()
    async with announcing(MemoryStore(memory), Drawn(300)) as (made, *_):
        await made.put_frontend(listening(300))
        async with published(memory) as (registry, _, _, following):
            await until(lambda: 300 in following.frontends)
            lease_of(memory, KEYS.controller).end()
            await registry.put(engine("decode-1"))
            await until(lambda: "decode-1" in following.records)
            assert peer_in(following) == PEER
            await registry.put_frontend(replace(listening(3), peer=""))
            await until(lambda: set(following.frontends) == {3, 300})


async def test_one_that_is_killed_while_the_controller_is_away_is_gone_and_engines_are_not() -> None:
    memory = Memory()
    async with published(memory) as (_, store, _, following), announcing(MemoryStore(memory), Drawn(300)) as one:
        await one.announcer.put_frontend(listening(300))
        await until(lambda: 300 in following.frontends)
        store.is_away = True
        lease_of(memory, KEYS.controller).end()
        await one.kill(memory)
        await until(lambda: not following.frontends)
        assert len(following.records) == 2


async def test_what_is_published_anew_is_seen_and_stays_without_a_controller() -> None:
    memory = Memory()
    async with published(memory) as (registry, store, _, following):
        assert following.spec is None
        for sealed in b"\x00\xff1", b"\x00\xff2":
            await registry.put_spec(SealedSpec(version="1", sealed=sealed))
            await until(lambda sealed=sealed: following.spec == SealedSpec(version="1", sealed=sealed))  # type: ignore[misc]
        store.is_away = True
        lease_of(memory, KEYS.controller).end()
        await asyncio.sleep(0.02)
        assert following.spec is not None
        store.is_away = False
        late = Follower(MemoryStore(memory), THEIRS)
        await late.connect()
        assert late.spec == following.spec
        await late.close()
