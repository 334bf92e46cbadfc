"""What every store keeps to: one suite over all backends. `new()` is another client of the same store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from random import Random

import pytest
from etcd_here import Etcd, answers, etcd

from disagg.registry import etcd_store
from disagg.registry.etcd_store import EtcdStore
from disagg.registry.file_store import FileStore
from disagg.registry.memory_store import Memory, MemoryStore
from disagg.registry.store import ABSENT, Conflict, Entry, LeaseLost, Snapshot, Store, pauses_s

New = Callable[[], Awaitable[Store]]
TTL_S = 1.0
NOTHING = Snapshot(0, {})


@pytest.fixture(scope="module")
def one_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as (member,):
        yield member


@pytest.fixture(params=["memory", "file", "etcd"])
async def new(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[New]:
    memory = Memory()
    async with AsyncExitStack() as stack:

        async def make() -> Store:
            store: Store
            match request.param:
                case "memory":
                    store = MemoryStore(memory)
                case "file":
                    store = FileStore(tmp_path / "registry")
                case _:
                    store = await answers(EtcdStore((request.getfixturevalue("one_etcd").endpoint,)))
            stack.push_async_callback(store.close)
            return store

        yield make


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Of this test alone: tests share one etcd."""
    return f"{request.node.name}/"


class Watcher:
    """A copy of what a store has, as its watch tells it."""

    def __init__(self, store: Store, prefix: str, since: Snapshot) -> None:
        self.entries = dict(since.entries)
        self.batches: list[dict[str, Entry | None]] = []
        self._task = asyncio.create_task(self._follow(store, prefix, since))

    async def _follow(self, store: Store, prefix: str, since: Snapshot) -> None:
        async with aclosing(store.watch(prefix, since)) as watch:  # type: ignore[type-var]
            async for batch in watch:
                self.batches.append(batch.changes)
                for key, entry in batch.changes.items():
                    if entry is None:
                        self.entries.pop(key, None)  # it may have come and gone since the last batch
                    else:
                        self.entries[key] = entry

    @property
    def values(self) -> dict[str, bytes]:
        return {key: entry.value for key, entry in self.entries.items()}

    async def until(self, values: dict[str, bytes], limit_s: float = 10.0) -> None:
        async with asyncio.timeout(limit_s):
            while self.values != values:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def _values(store: Store, prefix: str) -> dict[str, bytes]:
    return {key: entry.value for key, entry in (await store.snapshot(prefix)).entries.items()}


async def test_what_one_writes_another_reads(new: New, prefix: str) -> None:
    one, other = await new(), await new()
    await one.write({f"{prefix}a": b"1", f"{prefix}b": b"", f"{prefix}b/c": b"\xff\0"})
    assert await _values(other, prefix) == {f"{prefix}a": b"1", f"{prefix}b": b"", f"{prefix}b/c": b"\xff\0"}
    await other.write({f"{prefix}a": None, f"{prefix}b": b"2", f"{prefix}never": None})
    assert await _values(one, prefix) == {f"{prefix}b": b"2", f"{prefix}b/c": b"\xff\0"}
    assert await _values(one, f"{prefix}b/") == {f"{prefix}b/c": b"\xff\0"}


async def test_a_write_is_compared(new: New, prefix: str) -> None:
    store, key = await new(), f"{prefix}key"
    await store.write({key: b"1"}, expect={key: ABSENT})
    with pytest.raises(Conflict):
        await store.write({key: b"2", f"{prefix}other": b""}, expect={key: ABSENT})
    assert await _values(store, prefix) == {key: b"1"}
    version = (await store.snapshot(prefix)).entries[key].version
    await store.write({key: b"2"}, expect={key: version})
    with pytest.raises(Conflict):
        await store.write({key: None}, expect={key: version})
    assert await _values(store, prefix) == {key: b"2"}


async def test_of_many_who_claim_a_key_one_has_it(new: New, prefix: str) -> None:
    stores = [await new() for _ in range(8)]

    async def claim(number: int) -> bool:
        try:
            await stores[number].write({f"{prefix}key": b"%d" % number}, expect={f"{prefix}key": ABSENT})
        except Conflict:
            return False
        return True

    won = await asyncio.gather(*map(claim, range(8)))
    assert sum(won) == 1
    assert await _values(stores[0], prefix) == {f"{prefix}key": b"%d" % won.index(True)}


async def test_keys_of_a_revoked_lease_go_at_once_and_together(new: New, prefix: str) -> None:
    one, other = await new(), await new()
    lease = await one.grant(60)
    await one.write({f"{prefix}stays": b""})
    watcher = Watcher(other, prefix, await other.snapshot(prefix))
    leased = {f"{prefix}{number}": b"x" for number in range(50)}
    await one.write(leased, lease)
    await watcher.until({f"{prefix}stays": b""} | leased)
    await lease.revoke()
    await watcher.until({f"{prefix}stays": b""}, 1.0)
    assert watcher.batches[-1] == dict.fromkeys(leased)
    with pytest.raises(LeaseLost):
        await one.write({f"{prefix}more": b""}, lease)
    await watcher.stop()


async def test_a_lease_is_kept_while_its_holder_lives_and_runs_out_when_it_is_gone(new: New, prefix: str) -> None:
    one, other = await new(), await new()
    lease = await one.grant(TTL_S)
    await one.write({f"{prefix}a": b"", f"{prefix}b": b""}, lease)
    watcher = Watcher(other, prefix, await other.snapshot(prefix))
    await asyncio.sleep(2 * TTL_S)
    assert len(watcher.values) == 2
    assert not lease.lost.is_set()
    await one.close()
    await watcher.until({}, lease.ttl_s + 1.0)
    assert watcher.batches == [{f"{prefix}a": None, f"{prefix}b": None}]
    await watcher.stop()


async def test_a_key_that_is_put_again_goes_with_its_new_lease(new: New, prefix: str) -> None:
    store = await new()
    first, second = await store.grant(60), await store.grant(60)
    await store.write({f"{prefix}a": b"1", f"{prefix}b": b"1"}, first)
    await store.write({f"{prefix}a": b"2"}, second)
    await store.write({f"{prefix}b": b"2"})
    await first.revoke()
    assert await _values(store, prefix) == {f"{prefix}a": b"2", f"{prefix}b": b"2"}
    await second.revoke()
    assert await _values(store, prefix) == {f"{prefix}b": b"2"}


async def test_a_watch_goes_on_from_a_snapshot_however_old(new: New, prefix: str) -> None:
    one, other = await new(), await new()
    await one.write({f"{prefix}a": b"1", f"{prefix}b": b"1", f"{prefix}c": b"1", "elsewhere": b""})
    old = await other.snapshot(prefix)
    await one.write({f"{prefix}a": b"2", f"{prefix}b": None})
    await one.write({f"{prefix}d": b"1"})
    watcher = Watcher(other, prefix, old)
    await watcher.until({f"{prefix}a": b"2", f"{prefix}c": b"1", f"{prefix}d": b"1"})
    assert not any(f"{prefix}c" in batch for batch in watcher.batches)
    await one.write({f"{prefix}d": b"2", "elsewhere": None})
    await watcher.until({f"{prefix}a": b"2", f"{prefix}c": b"1", f"{prefix}d": b"2"})
    await watcher.stop()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_done_each_watcher_ends_with_the_table(new: New, prefix: str, seed: int) -> None:
    random, stores = Random(seed), [await new() for _ in range(3)]
    watchers = [Watcher(store, prefix, NOTHING) for store in stores]
    table: dict[str, bytes] = {}
    for step in range(60):
        changes = {f"{prefix}{random.randrange(9)}": random.choice([None, b"%d" % step]) for _ in range(3)}
        await random.choice(stores).write(changes)
        table |= {key: value for key, value in changes.items() if value is not None}
        for key in [key for key, value in changes.items() if value is None]:
            table.pop(key, None)
        if step % 20 == 7:
            stores.append(await new())
            watchers.append(Watcher(stores[-1], prefix, await stores[-1].snapshot(prefix)))
    for watcher in watchers:
        await watcher.until(table)
        await watcher.stop()


async def test_many_keys_are_written_and_read(new: New, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_store, "PAGE_KEYS", 1000)
    store = await new()
    lease = await store.grant(60)
    many = {f"{prefix}{number:05}": b"x" * 100 for number in range(2500)}
    await store.write(many, lease)
    assert await _values(store, prefix) == many
    watcher = Watcher(store, prefix, NOTHING)
    await watcher.until(many)
    await lease.revoke()
    await watcher.until({})
    await watcher.stop()


def test_those_who_lost_a_store_together_do_not_come_back_together() -> None:
    """A thousand of them, who try until it is there again at second 60: no tenth of a second has a tenth of them."""
    came = [0] * 100
    for seed in range(1000):
        now_s, pauses = 0.0, pauses_s(Random(seed))
        while now_s < 60:
            now_s += next(pauses)
        came[int((now_s - 60) * 10)] += 1
    assert max(came) < 100
    assert sum(came[:50]) == 1000, "all within 5 s"
