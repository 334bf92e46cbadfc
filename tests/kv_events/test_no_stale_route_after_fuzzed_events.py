"""Frontends whose streams of events are fuzzed, each in its own way: once all is quiet, no route rests on what is gone.

Lost, doubled, late and reordered are the numbered changes on their way to one frontend or another; connections are cut,
hosts are confused by a scheduler or it opens a new stream, caches are flushed, engines die and come back, and frontends
come later. Afterwards each rank says something once more, as ranks that serve do: a gap is seen with the next change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disagg.kv_events.events import At, Stored, Tier
from disagg.plane.messages import KvChanged, KvHeld, KvStart
from disagg.policy_names import DEFAULT
from disagg.roles import Role
from disagg.routing.kv_feed import KvFeed
from disagg.routing.prefix_index.index import SURE_BLOCKS
from disagg.routing.view import RoutingView
from disagg.simulation.world import Frontend, SimulatedDeployment, Stream
from tests.kv_events.pools import BLOCK_TOKENS, HASHER, SMALL, TOLD_S, check, in_virtual_time, load, over, paths_of
from tests.kv_events.two_indexes import TwoIndexes

LATE_S = 0.2
ACTIONS = ("load", "load", "load", "kill", "cut", "confuse", "begin anew", "flush", "a frontend comes")
Steps = st.lists(st.sampled_from(ACTIONS), min_size=3, max_size=8)


class Fuzz:
    """Of all frontends' feeds; `random` None: every change comes as it was sent."""

    random: Random | None = None


class FuzzedFeed(KvFeed):
    def on_kv(self, message: KvStart | KvHeld | KvChanged) -> None:
        random = Fuzz.random
        if random is None or not isinstance(message, KvChanged):
            super().on_kv(message)
            return
        for _ in range(random.choice((0, 1, 1, 1, 1, 1, 1, 2))):
            if random.random() < 0.2:
                asyncio.get_running_loop().call_later(random.random() * LATE_S, super().on_kv, message)
            else:
                super().on_kv(message)


@pytest.fixture(autouse=True)
def _fuzzed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.routing.load.PrefixIndex", TwoIndexes)
    monkeypatch.setattr("disagg.routing.connections.KvFeed", FuzzedFeed)
    monkeypatch.setattr("disagg.routing.kv_feed.AGAIN_MAX_S", LATE_S)  # so many are lost that it would soon be a minute


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(Steps, st.integers(0, 1 << 32))
def test_no_route_rests_on_what_is_gone_once_all_is_quiet(steps: list[str], seed: int) -> None:
    async def scenario() -> None:
        random = Random(seed)
        async with SimulatedDeployment(2, 1, seed=seed, frontends=2, model=SMALL, policy=DEFAULT) as sim:
            Fuzz.random, streams = random, list[Stream]()
            for step in steps:
                streams += await _do(step, sim, random)
            await over(streams)
            Fuzz.random = None
            await sim.settle()
            await asyncio.sleep(LATE_S + TOLD_S)
            await _each_rank_speaks(sim)
            await sim.settle()
            await asyncio.sleep(TOLD_S)
            check(sim)
            prompts = [stream.request.prompt_ids for stream in streams]
            for frontend in sim.frontends:
                for prompt in prompts:
                    _assert_true(frontend, sim, prompt)

    in_virtual_time(scenario)


async def _do(step: str, sim: SimulatedDeployment, random: Random) -> list[Stream]:
    if step == "load":
        return await load(sim, random, random.randrange(2, 12))
    host = sim.hosts[f"prefill-{random.randrange(2)}"]
    rank = random.choice(host.engine.ranks)
    match step:
        case "kill":
            host.kill()
        case "cut":
            client = random.choice(sim.frontends).connections.clients.get(host.life)
            if client is not None and client._connection is not None:
                client._connection.close("cut")
        case "confuse" if host.is_alive and host.kv is not None:
            unheard = At(1, 999_999, b"\0" * 4 * BLOCK_TOKENS), Stored(1, BLOCK_TOKENS, Tier.DEVICE)
            host.kv.heard(rank.index, unheard, rank.begin_to_tell)
        case "begin anew" if host.is_alive:
            rank.begin_to_tell()
        case "flush" if host.is_alive:
            await host.engine.flush_cache(1.0)
        case "a frontend comes":
            sim.frontends.append(Frontend(sim, len(sim.frontends)))
    await asyncio.sleep(random.random())
    return []


async def _each_rank_speaks(sim: SimulatedDeployment) -> None:
    """A prompt that nobody has, on each rank that reads some."""
    streams = []
    frontend = sim.frontends[0]
    for number, endpoint in enumerate(list(frontend.router.endpoints.of(Role.PREFILL))):
        prompt = [50_000 + number] * (2 * BLOCK_TOKENS + 1)
        request = sim.request(prompt, 1)
        request.prefix_on = endpoint.id
        streams.append(Stream(frontend, request))
        await asyncio.sleep(0.01)
    for stream in streams:
        await stream.rest()
    where = {str(stream.request.facts.prefill) for stream in streams}
    assert len(where) == len(streams), where


def _assert_true(frontend: Frontend, sim: SimulatedDeployment, prompt: list[int]) -> None:
    view = RoutingView(prompt_tokens=len(prompt), new_tokens=1, prompt_ids=prompt, path=HASHER.path(prompt))
    choice = frontend.router.consider(view)
    assert choice is not None
    reader = choice.pair.reader
    held = paths_of(sim.hosts[reader.engine.id].engine.ranks[reader.dp_rank].pool)
    really = max((at for at, key in enumerate(view.path, 1) if key in held), default=0) * BLOCK_TOKENS
    by_chance = (SURE_BLOCKS - 1) * BLOCK_TOKENS  # beside a branch
    assert choice.cached_tokens <= really + by_chance, (
        f"{frontend.name} believes that {reader.name} has more than it has"
    )


def test_the_fuzz_loses_doubles_and_reorders() -> None:
    seen: list[Any] = []

    class Feed(FuzzedFeed):
        def __init__(self) -> None: ...

    real: Callable[..., None] = KvFeed.on_kv
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KvFeed, "on_kv", lambda _feed, message: seen.append(message.begins))

        async def scenario() -> None:
            Fuzz.random = Random(1)
            for begins in range(200):
                Feed().on_kv(KvChanged(0, begins, [], 0.0))
                await asyncio.sleep(0.01)
            await asyncio.sleep(1)
            Fuzz.random = None

        in_virtual_time(scenario)
    assert KvFeed.on_kv is real
    assert len(set(seen)) < 190
    assert len(seen) > len(set(seen))
    assert seen != sorted(seen)
