"""A request's cache salt is the same on both legs, in every try; routing has other keys for each."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package

from bench import bench, request, until

from disagg.coordinator.limits import Limits
from disagg.kv_events.blocks import BlockHasher
from disagg.process.stub import StubEngine
from disagg.routing.load import Endpoints
from disagg.routing.policies.least_loaded import LeastLoaded
from disagg.routing.view import Choice, RoutingView


async def test_both_legs_name_it_in_each_try() -> None:
    async with bench(decode=StubEngine(hold=True), limits=Limits()) as b:
        r = request(max_tokens=3)
        r.salt = "a"
        answering = b.start(r)
        await until(lambda: bool(b.decode.legs))
        b.decode.fail(r.id, "out of memory")
        await until(lambda: len(b.decode.legs) == 2)
        b.decode.release()
        assert (await asyncio.wait_for(answering, 30))[1] == "length"
        await b.answer(request(max_tokens=3))
        await b.settle()
    legs = [leg for engine in (b.prefill, b.decode) for leg in engine.legs]
    assert [leg.salt for leg in legs] == ["a", "a", ""] * 2


async def test_the_policy_gets_other_keys_for_each() -> None:
    seen: list[RoutingView] = []

    class Looks(LeastLoaded):
        def choose(self, view: RoutingView, endpoints: Endpoints) -> Choice | None:
            seen.append(view)
            return super().choose(view, endpoints)

    hasher = BlockHasher(b"s" * 32, 1)
    async with bench() as b:
        b.router._policy, b.router.reads_prefixes, b.router._hasher = Looks(), True, hasher
        for salt in ("", "a"):
            r = request(max_tokens=2)
            r.salt = salt
            await b.answer(r)
        await b.settle()
    assert [view.salt for view in seen] == ["", "a"]
    assert [view.path for view in seen] == [hasher.path(view.prompt_ids, "", view.salt) for view in seen]
    assert not set(seen[0].path) & set(seen[1].path)
