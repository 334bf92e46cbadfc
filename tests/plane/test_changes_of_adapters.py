"""Each change of an adapter has its own answer, also after one that came too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from disagg.adapters import Adapter
from disagg.errors import LegLost
from disagg.plane.client import PlaneClient
from disagg.plane.messages import LoadAdapter, UnloadAdapter
from disagg.plane.server import PlaneServer
from disagg.process.stub import FACTS, StubEngine

SECRET = b"s" * 32
LIMIT_S = 20.0


class SlowEngine(StubEngine):
    """Loads an adapter once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_load = asyncio.Event()

    async def load_adapter(self, adapter: Adapter) -> None:
        await self.may_load.wait()
        await super().load_adapter(adapter)


@asynccontextmanager
async def connected(engine: SlowEngine) -> AsyncIterator[PlaneClient]:
    server = PlaneServer(engine, FACTS, 1, SECRET)
    client = PlaneClient(f"127.0.0.1:{await server.start('127.0.0.1')}", 1, SECRET, lambda _why: None)
    try:
        await client.connect()
        yield client
    finally:
        client.close()
        server.close()


async def test_an_unload_after_a_load_that_timed_out_takes_the_adapter_away() -> None:
    engine = SlowEngine()
    async with connected(engine) as client:
        with pytest.raises(TimeoutError):
            await client.change_adapter(LoadAdapter("sql", "/a"), 0.05)
        unloading = asyncio.create_task(client.change_adapter(UnloadAdapter("sql"), LIMIT_S))
        await client.loads()  # the host has read the unload, too
        engine.may_load.set()
        assert await unloading == ""
        assert (await client.adapters(), engine.adapters) == ({}, {})


async def test_two_loads_of_one_name_have_each_its_own_answer() -> None:
    engine = SlowEngine()
    async with connected(engine) as client:
        loading = [
            asyncio.create_task(client.change_adapter(LoadAdapter("sql", path), LIMIT_S)) for path in ("/a", "/b")
        ]
        engine.may_load.set()
        first, second = await asyncio.gather(*loading)
        assert first == ""
        assert "from /a" in second


async def test_a_change_ends_with_its_connection() -> None:
    async with connected(SlowEngine()) as client:
        loading = asyncio.create_task(client.change_adapter(LoadAdapter("sql", "/a"), LIMIT_S))
        await client.loads()
        client.close()
        with pytest.raises(LegLost):
            await loading
        with pytest.raises(LegLost):
            await client.change_adapter(UnloadAdapter("sql"), LIMIT_S)
