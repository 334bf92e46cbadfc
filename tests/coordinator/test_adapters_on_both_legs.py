"""A request's adapter is the same on both legs, in every try; one that is gone is the client's 404."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package

from bench import Bench, bench, request, until

from disagg.coordinator.limits import Limits
from disagg.errors import NoAdapter
from disagg.plane.messages import LoadAdapter, UnloadAdapter
from disagg.process.stub import StubEngine
from disagg.routing.load import Endpoints
from disagg.routing.policies.least_loaded import LeastLoaded
from disagg.routing.view import Choice, RoutingView


async def change(b: Bench, what: LoadAdapter | UnloadAdapter) -> None:
    for client in b.router.connections.clients.values():
        assert await client.change_adapter(what, 5) == ""


async def test_both_legs_name_it_in_each_try() -> None:
    async with bench(decode=StubEngine(hold=True), limits=Limits()) as b:
        await change(b, LoadAdapter("sql", "/a"))
        r = request(max_tokens=3)
        r.adapter = "sql"
        answering = b.start(r)
        await until(lambda: bool(b.decode.legs))
        b.decode.fail(r.id, "out of memory")
        await until(lambda: len(b.decode.legs) == 2)
        b.decode.release()
        assert (await asyncio.wait_for(answering, 30))[1] == "length"
        assert r.facts.shown()["adapter"] == "sql"
        plain = request(max_tokens=3)
        await b.answer(plain)
        assert "adapter" not in plain.facts.shown()
        await b.settle()
    legs = [leg for engine in (b.prefill, b.decode) for leg in engine.legs]
    assert [leg.adapter for leg in legs] == ["sql", "sql", ""] * 2


async def test_the_policy_knows_it_so_that_nobody_else_is_credited_with_its_prefix() -> None:
    seen: list[str] = []

    class Looks(LeastLoaded):
        def choose(self, view: RoutingView, endpoints: Endpoints) -> Choice | None:
            seen.append(view.adapter)
            return super().choose(view, endpoints)

    async with bench() as b:
        b.router._policy = Looks()
        await change(b, LoadAdapter("sql", "/a"))
        r = request(max_tokens=2)
        r.adapter = "sql"
        await b.answer(r)
        await b.settle()
    assert seen == ["sql"]


async def test_one_that_was_unloaded_on_the_way_is_a_404_and_not_tried_again() -> None:
    async with bench() as b:
        await change(b, LoadAdapter("sql", "/a"))
        await change(b, UnloadAdapter("sql"))
        r = request()
        r.adapter = "sql"
        with pytest.raises(NoAdapter, match="there is no adapter 'sql'") as caught:
            await b.answer(r)
        await b.settle()
        assert (caught.value.http_status, caught.value.code, r.tries) == (404, "model_not_found", 1)
        assert b.prefill.legs == b.decode.legs == []


async def test_a_host_counts_the_legs_of_each() -> None:
    async with bench(prefill=StubEngine(hold=True), decode=StubEngine(hold=True)) as b:
        await change(b, LoadAdapter("sql", "/a"))
        await change(b, LoadAdapter("fr", "/b"))
        await change(b, LoadAdapter("sql", "/a"))  # is there
        r = request()
        r.adapter = "sql"
        answering = b.start(r)
        await until(lambda: bool(b.prefill.legs and b.decode.legs))
        clients = b.router.connections.clients
        assert [await client.adapters() for client in clients.values()] == [{"sql": 1, "fr": 0}] * 2
        assert "from /a" in await clients["decode-0#1"].change_adapter(LoadAdapter("sql", "/other"), 5)
        answering.cancel()
        await b.settle()
        assert [await client.adapters() for client in clients.values()] == [{"sql": 0, "fr": 0}] * 2
