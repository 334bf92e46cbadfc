"""A frontend's index is exactly what the engines' pools hold, through load, kills, restarts, gaps and flushes."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from disagg.frontend.service import Service
from disagg.kv_events.events import At, Stored, Tier
from disagg.routing.connections import Connections
from disagg.routing.view import RoutingView
from disagg.simulation.world import BLOCK_TOKENS, SECRET, Frontend, SimulatedDeployment
from tests.kv_events.pools import HASHER, SMALL, TOLD_S, check, endpoints, in_virtual_time, load, over
from tests.kv_events.two_indexes import TwoIndexes
from tests.routing.engines import PickingRouter


@pytest.fixture(autouse=True)
def _two_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.routing.load.PrefixIndex", TwoIndexes)


@pytest.mark.parametrize("seed", range(3))
def test_the_index_is_exact_after_load_kills_restarts_and_a_flush(seed: int) -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=2, decode=1, seed=seed, frontends=2, model=SMALL) as sim:
            random, connections = Random(seed), sim.frontends[0].connections
            await over(await load(sim, random, 40))
            await sim.settle()
            await asyncio.sleep(TOLD_S)
            assert check(sim) > 200  # and it has been full: blocks were evicted
            streams = await load(sim, random, 10)
            killed = endpoints(connections, sim)["prefill-0", 0]
            sim.hosts["prefill-0"].kill()
            await over(streams)
            assert killed.slot == -1
            await sim.settle()
            await asyncio.sleep(TOLD_S)
            check(sim)
            await over(await load(sim, random, 10))
            await sim.settle()
            service = Service(
                model_name="m",
                router=sim.frontends[0].router,
                coordinator=sim.frontends[0].coordinator,
                control=None,  # type: ignore[arg-type]
            )
            while any((await service.flush_caches(2.0)).values()):
                pass
            await asyncio.sleep(TOLD_S)
            assert check(sim) == 0
            assert not any(told.gaps for told in connections.caches.values())

    in_virtual_time(scenario)


def test_a_gap_is_noticed_and_the_rank_tells_all_anew() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=1, decode=1, seed=5, model=SMALL) as sim:
            await over(await load(sim, Random(5), 10))
            await sim.settle()
            host, told = sim.hosts["prefill-0"], sim.frontends[0].connections.caches
            assert told["prefill-0", 0].blocks + told["prefill-0", 1].blocks
            kv, rank = host.kv, host.engine.ranks[0]
            assert kv is not None
            unheard = At(1, 999, b"\0" * 128), Stored(1, 32, Tier.DEVICE)  # what 999 is was lost
            kv.heard(0, unheard, rank._begin_anew)
            await asyncio.sleep(TOLD_S)
            check(sim)
            told = sim.frontends[0].connections.caches
            assert (told["prefill-0", 0].is_known, told["prefill-0", 0].gaps) == (True, 1)
            assert kv.epochs[0] == 2

    in_virtual_time(scenario)


def test_a_frontend_that_comes_later_knows_all_in_a_moment_while_others_load() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=2, decode=1, seed=6, model=SMALL) as sim:
            await over(await load(sim, Random(6), 30))
            streams = await load(sim, Random(7), 5)
            sim.frontends.append(Frontend(sim, 1))
            began_s = asyncio.get_running_loop().time()
            connections = sim.frontends[1].connections
            while len(connections.caches) < 4 or not connections.caches_are_whole:
                await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - began_s < 1.0
            await over(streams)
            await sim.settle()
            await asyncio.sleep(TOLD_S)
            assert check(sim) > 100

    in_virtual_time(scenario)


def test_a_connection_that_is_cut_takes_what_was_known_with_it_and_brings_it_back() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=1, decode=1, seed=8, model=SMALL) as sim:
            await over(await load(sim, Random(8), 10))
            await sim.settle()
            connections = sim.frontends[0].connections
            connections.clients["prefill-0#1"]._connection.close("cut")  # type: ignore[union-attr]
            while "prefill-0#1" in connections.clients:
                await asyncio.sleep(0)
            assert not any(connections.endpoints.index.exact.values())  # type: ignore[attr-defined]
            await asyncio.sleep(TOLD_S)
            assert check(sim) > 50

    in_virtual_time(scenario)


def test_of_engines_that_do_not_tell_it_is_shown_what_is_guessed() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=1, decode=1, seed=8, model=SMALL) as sim:
            here, now_s = sim.network.at("guesser"), asyncio.get_running_loop().time
            guesser = Connections(SECRET, here, now_s, block_tokens=BLOCK_TOKENS, kv_events=False)
            following = asyncio.create_task(guesser.follow(sim.registry.watch()))
            try:
                while len(guesser.caches) < 4:
                    await asyncio.sleep(0.01)
                ids = list(range(4 * BLOCK_TOKENS))
                view = RoutingView(prompt_tokens=len(ids), new_tokens=1, path=HASHER.path(ids))
                assert PickingRouter(guesser).pick(view) is not None
                assert sorted(told.blocks for told in guesser.caches.values()) == [0, 0, 0, 4]
                assert not any(told.is_known for told in guesser.caches.values())
            finally:
                following.cancel()

    in_virtual_time(scenario)
