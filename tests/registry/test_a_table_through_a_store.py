"""The controller's table, as followers have it through a store that is lost, loses a lease, or is another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from disagg.adapters import Adapter
from disagg.errors import StartError
from disagg.registry import follower, publisher
from disagg.registry.changes import Changes
from disagg.registry.follower import Follower
from disagg.registry.keys import Keys, encode, parse, read
from disagg.registry.memory import MemoryRegistry
from disagg.registry.memory_store import Memory, MemoryLease, MemoryStore
from disagg.registry.publisher import Publisher
from disagg.registry.records import ControllerRecord, EngineRecord, FrontendRecord, ModelRecord, ModelState, State
from disagg.registry.store import Entry, Snapshot, StoreLost
from disagg.roles import Role

KEYS = Keys("prod", "chat", "owner/Model-7B")
ME = ControllerRecord(run="run-1", host="here", pid=7)
LEASE_S = 60.0


def engine(engine_id: str, state: State = State.READY, incarnation: int = 1) -> EngineRecord:
    return EngineRecord(id=engine_id, role=Role.DECODE, state=state, incarnation=incarnation, plane="10.0.0.1:7")


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.002)


class Flaky(MemoryStore):
    """`is_away`: every call fails, as with an etcd that does not answer."""

    is_away = False
    writes = 0
    snapshots_to_lose = 0
    hold: asyncio.Event | None = None  # a write waits for it
    is_held: asyncio.Event

    async def snapshot(self, prefix: str) -> Snapshot:
        if self.snapshots_to_lose:
            self.snapshots_to_lose -= 1
            raise StoreLost("test", "it is away")
        return await super().snapshot(prefix)

    async def write(self, *arguments, **names) -> None:
        if self.hold is not None:
            self.is_held.set()
            await self.hold.wait()
        if self.is_away:
            raise StoreLost("test", "it is away")
        self.writes += 1
        await super().write(*arguments, **names)

    async def grant(self, ttl_s: float) -> MemoryLease:
        if self.is_away:
            raise StoreLost("test", "it is away")
        return await super().grant(ttl_s)


@asynccontextmanager
async def published(memory: Memory) -> AsyncIterator[tuple[MemoryRegistry, Flaky, Publisher, Follower]]:
    """A table with a pair, and a follower who has it."""
    registry, store = MemoryRegistry(), Flaky(memory)
    await registry.put(engine("prefill-0"))
    await registry.put(engine("decode-0"))
    await registry.add_met("prefill-0#1", "decode-0#1")
    made = Publisher(registry, store, KEYS, ME, LEASE_S, Random(1))
    await made.begin()
    running = asyncio.create_task(made.run())
    following = Follower(MemoryStore(memory), KEYS)
    await following.connect()
    try:
        yield registry, store, made, following
    finally:
        running.cancel()
        await following.close()
        await asyncio.gather(running, return_exceptions=True)


def same(registry: MemoryRegistry, following: Follower) -> bool:
    theirs = (following.records, following.met, following.adapters, following.frontends, following.models)
    return theirs == (registry.records, registry.met, registry.adapters, registry.frontends, registry.models)


async def test_a_follower_has_what_the_controller_says() -> None:
    async with published(Memory()) as (registry, _, made, following):
        assert same(registry, following)
        await registry.put_adapter(Adapter("a/b c", "/a"))
        await registry.put_frontend(FrontendRecord(number=3, url="http://h:1/v1", pid=9))
        await registry.put(engine("decode-0", State.DEAD))
        await registry.forget("decode-0#1")
        await registry.put(engine("decode-1"))
        for key in ("small", "chat"):
            await registry.put_model(
                ModelRecord(key=key, number=1, state=ModelState.SERVING, spec={"name": "org/m", "path": "/m"})
            )
        assert await made.published(5)
        await until(lambda: same(registry, following))
        assert len(following.adapters) == len(following.frontends) == 1
        assert len(following.met) == 0
        await registry.remove("prefill-0")
        await registry.remove_adapter("a/b c")
        await registry.remove_model("small")
        await registry.put_model(replace(registry.models["chat"], state=ModelState.LEAVING))
        await until(lambda: same(registry, following))


async def test_followers_ask_the_controller_where_the_newest_one_is() -> None:
    memory = Memory()
    registry, following = MemoryRegistry(), Follower(MemoryStore(memory), KEYS)
    for run, control in (("run-1", "10.0.0.1:7"), ("run-2", "10.0.0.2:8")):
        made = Publisher(registry, MemoryStore(memory), KEYS, replace(ME, run=run), LEASE_S, Random(1))
        await made.begin(control)
        running = asyncio.create_task(made.run())
        if run == "run-1":
            await following.connect()
        await until(lambda control=control: following.control == control)  # type: ignore[misc]
        running.cancel()
        await made.end()
        await asyncio.sleep(0.01)
        assert following.control == control, "while there is none, the last one is all that is known"
    await following.close()


async def test_while_the_store_is_away_nothing_changes_and_then_all_comes_in_one_write() -> None:
    async with published(Memory()) as (registry, store, made, following):
        store.is_away, before = True, store.writes
        for incarnation in range(2, 50):
            await registry.put(engine("decode-0", incarnation=incarnation))
            await asyncio.sleep(0)
        assert not await made.published(0.05)
        assert following.records["decode-0"].incarnation == 1
        store.is_away = False
        await until(lambda: same(registry, following))
        assert store.writes - before <= 2, "the first change, and all that came while it was tried"


async def test_engines_whose_lease_was_lost_stay_known_until_the_controller_has_told_all_anew() -> None:
    memory = Memory()
    async with published(memory) as (registry, store, _, following):
        seen: list[set[str]] = []
        watch = following.watch()
        await anext(watch)
        store.is_away = True
        (lease,) = {id(owner): owner for owner in memory.owners.values()}.values()
        assert isinstance(lease, MemoryLease)
        lease.end()  # the network is gone for longer than the lease
        await asyncio.sleep(0.05)
        assert not memory.entries
        assert same(registry, following), "all keys are gone, and all engines known"
        await registry.remove("prefill-0")
        await registry.forget("prefill-0#1")
        await registry.put(engine("decode-1"))
        store.is_away = False
        await until(lambda: same(registry, following))
        watch.wake()
        while watch.pending:
            seen.append(set((await anext(watch)).changes.records))
        assert not any("decode-0" in records for records in seen), "it never went, and never came"


async def test_a_frontend_that_comes_while_all_is_put_anew_waits_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    await store.write({KEYS.controller: encode(ME)})
    coming = Follower(store, KEYS)
    connecting = asyncio.create_task(coming.connect())
    await asyncio.sleep(0.05)
    assert not connecting.done()
    await store.write(KEYS.spelt(Changes(records={"decode-0": engine("decode-0")})))
    await store.write({KEYS.controller: encode(replace(ME, is_whole=True))})
    async with asyncio.timeout(5):
        await connecting
    assert list(coming.records) == ["decode-0"]
    await coming.close()
    monkeypatch.setattr(follower, "BEGIN_S", 0.1)
    with pytest.raises(StoreLost, match="no deployment chat of namespace prod"):
        await Follower(MemoryStore(), KEYS).connect()


async def test_two_deployments_of_one_name_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "CLAIM_POLL_S", 0.05)
    monkeypatch.setattr(publisher, "CLAIM_MORE_S", 0.2)
    memory = Memory()
    other = replace(ME, run="run-2", host="there")
    async with published(memory) as (registry, store, _, following):
        second = Publisher(MemoryRegistry(), MemoryStore(memory), KEYS, other, 0.1, Random(2))
        with pytest.raises(StartError, match="by process 7 on here"):
            await second.begin()
        assert second.is_taken.is_set()
        assert same(registry, following)
        elsewhere = Publisher(
            MemoryRegistry(), MemoryStore(memory), replace(KEYS, deployment="chat2"), other, 0.1, Random(2)
        )
        await elsewhere.begin()
        assert same(registry, following)
        await store.close()  # as if it was killed: its name is free when its lease is over
        await second.begin()


async def test_an_earlier_controller_of_ones_own_is_waited_for_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher, "CLAIM_POLL_S", 0.02)
    monkeypatch.setattr(publisher, "CLAIM_MORE_S", 0.0)
    memory = Memory()
    earlier, later = replace(ME, run="r1.a"), replace(ME, run="r1.b")
    store = MemoryStore(memory)
    await Publisher(MemoryRegistry(), store, KEYS, earlier, LEASE_S, Random(1)).begin()
    second = Publisher(MemoryRegistry(), MemoryStore(memory), KEYS, later, 0.1, Random(2))
    beginning = asyncio.create_task(second.begin())
    await asyncio.sleep(0.5)
    assert not beginning.done()
    await store.close()
    async with asyncio.timeout(10):
        await beginning
    assert not second.is_taken.is_set()


async def test_one_whose_name_was_taken_meanwhile_knows_it() -> None:
    memory = Memory()
    async with published(memory) as (_, store, made, _following):
        store.is_away = True
        (lease,) = {id(owner): owner for owner in memory.owners.values()}.values()
        assert isinstance(lease, MemoryLease)
        lease.end()  # it was cut off for longer than the lease, and another controller has come
        other = Publisher(MemoryRegistry(), MemoryStore(memory), KEYS, replace(ME, run="run-2"), LEASE_S, Random(2))
        await other.begin()
        assert not made.is_taken.is_set()
        store.is_away = False
        async with asyncio.timeout(10):
            await made.is_taken.wait()
        assert not other.is_taken.is_set()


async def test_what_a_dead_run_left_without_a_lease_is_swept() -> None:
    memory = Memory()
    await MemoryStore(memory).write(KEYS.spelt(Changes(records={"decode-9": engine("decode-9")})))
    async with published(memory) as (registry, _, _, following):
        await until(lambda: same(registry, following))
        assert not any("decode-9" in key for key in memory.entries)


async def test_a_claim_that_was_made_though_nobody_said_so_is_ones_own() -> None:
    """The write was made and its answer was lost."""
    store = MemoryStore()
    await store.write({KEYS.controller: encode(ME)})
    made = Publisher(MemoryRegistry(), store, KEYS, ME, LEASE_S, Random(1))
    await made.begin()
    await made.end()
    assert not (await store.snapshot("")).entries


async def test_records_of_another_version_are_left_out_and_the_others_read(caplog: pytest.LogCaptureFixture) -> None:
    entries = {
        f"{KEYS.prefix}m/engine/decode-0": Entry(encode(engine("decode-0")), 1),
        f"{KEYS.prefix}m/engine/decode-1": Entry(b'{"id": "decode-1", "role": "no role"}', 1),
        f"{KEYS.prefix}m/engine/decode-2": Entry(encode(engine("decode-2"))[:-1] + b',"newer": 1}', 1),
        f"{KEYS.prefix}m/planet/earth": Entry(b"?", 1),
        "disagg/too/short": Entry(b"", 1),
        "others/of/etcd/x/y/z": Entry(b"", 1),
    }
    assert sorted(read(entries).records) == ["decode-0", "decode-2"]
    assert "decode-1 is not understood" in caplog.text


names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(names, names, names)
def test_keys_hold_any_name(model: str, name: str, other: str) -> None:
    keys = Keys("ns", "dep", model)
    changes = Changes(adapters={name: Adapter(name, "/a")}, met={(name, other): True})
    spelt = keys.spelt(changes)
    assert all(key.isascii() and key.isprintable() for key in spelt)
    assert {parse(key).model for key in spelt} == {model}  # type: ignore[union-attr]
    back = read({key: Entry(value or b"", 1) for key, value in spelt.items()})
    assert (back.adapters, back.met) == (changes.adapters, changes.met)
