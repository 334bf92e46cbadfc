"""The controller's table in a frontend's process: whole at the start, then O(change), merged while it is slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from disagg.adapters import Adapter
from disagg.plane.framing import Connection
from disagg.registry.keys import read
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, State
from disagg.registry.served import SEEN, RegistryServer, RemoteRegistry, decode_batch
from disagg.registry.store import Batch, StoreLost
from disagg.roles import Role

SECRET = b"s" * 32
HOST = "127.0.0.1"


def record(engine_id: str, state: State = State.READY) -> EngineRecord:
    role = Role.PREFILL if engine_id.startswith("prefill") else Role.DECODE
    return EngineRecord(id=engine_id, role=role, state=state, incarnation=1)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def served(engines_a_role: int = 0) -> AsyncIterator[tuple[MemoryRegistry, RegistryServer, str]]:
    """A table in which all have met."""
    registry = MemoryRegistry()
    for number in range(engines_a_role):
        for role in Role.PREFILL, Role.DECODE:
            await registry.put(record(f"{role}-{number}"))
        for other in range(engines_a_role):
            await registry.add_met(f"prefill-{other}#1", f"decode-{number}#1")
    server = RegistryServer(registry, SECRET)
    address = f"{HOST}:{await server.start(HOST)}"
    try:
        yield registry, server, address
    finally:
        await server.close()
        await asyncio.sleep(0.02)


async def test_a_frontend_that_comes_late_has_the_whole_table_once_it_is_connected() -> None:
    async with served(3) as (registry, server, address):
        early = RemoteRegistry(address, SECRET)
        await early.connect()
        await registry.forget("decode-2#1")
        await registry.remove("decode-2")
        late = RemoteRegistry(address, SECRET)
        await late.connect()
        await until(lambda: (early.records, early.met) == (registry.records, registry.met))
        for remote in early, late:
            assert (remote.records, remote.met) == (registry.records, registry.met)
            assert len(remote.met) == 6
        assert server.frames_sent <= 4


@pytest.mark.parametrize("engines_a_role", [1, 40])
async def test_a_pair_that_meets_costs_a_frame_of_its_own_size_however_large_the_table(engines_a_role: int) -> None:
    async with served(engines_a_role) as (registry, server, address):
        remote = RemoteRegistry(address, SECRET)
        await remote.connect()
        frames, sent = server.frames_sent, server.bytes_sent
        await registry.add_met("prefill-0#2", "decode-0#2")
        await until(lambda: ("prefill-0#2", "decode-0#2") in remote.met)
        assert server.frames_sent - frames == 1
        assert server.bytes_sent - sent < 120


async def test_changes_are_merged_while_a_frontend_is_slow() -> None:
    """A frontend that says nothing gets nothing more; what happens meanwhile is one frame, without what is over."""
    async with served(1) as (registry, _, address):
        frames: list[Batch] = []
        host, port = address.split(":")
        slow = Connection(
            SECRET,
            is_server=False,
            on_open=lambda _: None,
            on_frame=lambda body: frames.append(decode_batch(body)),
            on_lost=lambda _: None,
        )
        await asyncio.get_running_loop().create_connection(lambda: slow, host, int(port))
        await until(lambda: len(frames) == 1)
        for incarnation in range(2, 500):
            await registry.add_met("prefill-0#1", f"decode-0#{incarnation}")
            await registry.put(msgspec.structs.replace(record("decode-0"), incarnation=incarnation))
            await registry.forget(f"decode-0#{incarnation - 1}")
        await asyncio.sleep(0.1)
        assert len(frames) == 1
        slow.send(SEEN)
        await until(lambda: len(frames) == 2)
        merged = read(frames[1].changes)
        assert [(r.id, r.incarnation) for r in merged.records.values() if r] == [("decode-0", 499)]
        assert [pair for pair, have_met in merged.met.items() if have_met] == [("prefill-0#1", "decode-0#499")]
        slow.close("done")


async def test_when_the_controller_is_gone_a_watch_ends() -> None:
    async with served(1) as (_, server, address):
        remote = RemoteRegistry(address, SECRET)
        await remote.connect()
        watch = remote.watch()
        await anext(watch)
        await server.close()
        async with asyncio.timeout(10):
            assert [view async for view in watch] == []


async def test_without_the_secret_nothing_is_told() -> None:
    async with served(1) as (_, server, address):
        remote = RemoteRegistry(address, b"t" * 32)
        with pytest.raises(StoreLost):
            await remote.connect()
        assert not remote.records
        assert server.frames_sent == 0


async def test_adapters_come_and_go_and_the_controller_knows_when_all_have_seen_it() -> None:
    async with served() as (registry, server, address):
        await registry.put_adapter(Adapter("sql", "/a", created_s=7))
        first, second = RemoteRegistry(address, SECRET), RemoteRegistry(address, SECRET)
        await first.connect()
        await second.connect()
        assert first.adapters == second.adapters == {"sql": Adapter("sql", "/a", created_s=7)}
        await registry.put_adapter(Adapter("sql", "/a", created_s=7, is_leaving=True))
        assert await server.all_have_seen(5)
        assert first.adapters["sql"].is_leaving
        assert second.adapters["sql"].is_leaving
        await registry.remove_adapter("sql")
        assert await server.all_have_seen(5)
        assert first.adapters == second.adapters == {}
        await second.close()
        await asyncio.sleep(0.05)
        await registry.put_adapter(Adapter("fr", "/b"))
        assert await server.all_have_seen(5), "one that has left is not waited for"


async def test_a_frontend_that_is_silent_is_not_waited_for_without_end() -> None:
    async with served() as (registry, server, address):
        proven = asyncio.Event()
        host, port = address.split(":")
        silent = Connection(
            SECRET,
            is_server=False,
            on_open=lambda _connection: proven.set(),
            on_frame=lambda _body: None,
            on_lost=lambda _why: None,
        )
        await asyncio.get_running_loop().create_connection(lambda: silent, host, int(port))
        await proven.wait()
        await until(lambda: server.frames_sent == 1)
        await registry.put_adapter(Adapter("sql", "/a"))
        assert not await server.all_have_seen(0.05)
        silent.close("over")
        assert await server.all_have_seen(5)
