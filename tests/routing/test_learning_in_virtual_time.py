"""What a frontend has learnt of engines follows them: those that nothing is sent to, and those that read and answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from disagg.policy_names import DEFAULT
from disagg.roles import Role
from disagg.routing.cost.costs import Costs
from disagg.routing.policies.predicted import Predicted
from disagg.simulated_engine.model import Model
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment, Stream

MODEL = {"requests_max": 16, "cache_block_tokens": 0}


class Quick(Stream):
    """A client that never lags: of the others' answers no pace is learnt."""

    def is_open(self) -> bool:
        return True


def in_virtual_time(scenario: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())  # type: ignore[arg-type]


def costs_of(sim: SimulatedDeployment) -> Costs:
    policy = sim.frontends[0].router._policy
    assert isinstance(policy, Predicted)
    return policy.costs


async def one_by_one(sim: SimulatedDeployment, count: int, prompt_tokens: int, pause_s: float = 1.0) -> Counter[str]:
    """Where their prompts were read."""
    where = Counter[str]()
    for number in range(count):
        stream = Quick(sim.frontends[0], sim.request([number + 7] * prompt_tokens, 8))
        await stream.rest()
        reader = stream.request.facts.prefill or stream.request.facts.decode
        assert reader is not None
        where[reader.engine_id] += 1
        await asyncio.sleep(pause_s)
    return where


def test_an_engine_that_was_slow_once_is_used_again_and_one_that_still_is_seldom() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=2, decode=1, seed=3, model=MODEL, policy=DEFAULT) as sim:
            assert min((await one_by_one(sim, 40, 2000)).values()) > 10
            sim.hosts["prefill-1"].engine.slow(4.0)
            await one_by_one(sim, 60, 2000)
            still_slow = await one_by_one(sim, 300, 2000)
            assert 1 <= still_slow["prefill-1"] <= 15, still_slow
            sim.hosts["prefill-1"].engine.slow(1.0)
            await one_by_one(sim, 200, 2000)
            assert (await one_by_one(sim, 60, 2000))["prefill-1"] > 15

    in_virtual_time(scenario)


@pytest.mark.parametrize("seed", range(2))
def test_what_an_aggregated_engine_reads_between_two_tokens_is_not_taken_for_slow_steps(seed: int) -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(
            prefill=0, decode=0, aggregated=1, seed=seed, model=MODEL, policy=DEFAULT
        ) as sim:
            random, streams = Random(seed), list[Stream]()
            for number in range(60):
                request = sim.request([number + 7] * random.randrange(1000, 4000), random.randrange(40, 80))
                streams.append(Quick(sim.frontends[0], request))
                await asyncio.sleep(random.random() * 1.5)
            for stream in streams:
                await stream.rest()
            costs, rank = costs_of(sim), streams[0].request.facts.decode
            assert rank is not None
            real_s = Model(role=Role.AGGREGATED).decode_step_s(4, 0) * 1.05  # and jitter
            assert costs.step_s(rank, 4, 8000) == pytest.approx(real_s, rel=0.25)
            stood = [each.request.facts.stood_s for each in streams]
            assert all(seconds is not None and seconds >= 0 for seconds in stood)
            assert max(filter(None, stood)) > 1.0  # and there was much of it

    in_virtual_time(scenario)


def test_after_a_burst_of_long_prompts_short_ones_go_to_the_aggregated_engine_again() -> None:
    """As was seen on simulated engines: they went to pairs for as long as one looked."""

    async def scenario() -> None:
        pace: dict[str, Any] = MODEL | {"transfer_setup_s": 0.05}
        async with SimulatedDeployment(prefill=1, decode=1, aggregated=1, seed=4, model=pace, policy=DEFAULT) as sim:
            before = await one_by_one(sim, 30, 100)
            assert before["aggregated-0"] > 20, before
            random, streams = Random(4), list[Stream]()
            for number in range(80):
                request = sim.request([number + 7] * random.randrange(2000, 6000), 60)
                streams.append(Quick(sim.frontends[0], request))
                await asyncio.sleep(random.random() * 0.5)
            for stream in streams:
                await stream.rest()
            assert sum(stream.request.facts.prefill is None for stream in streams) > 10
            await asyncio.sleep(30.0)  # until what it read is of long ago
            after = await one_by_one(sim, 30, 100)
            assert after["aggregated-0"] > 20, after

    in_virtual_time(scenario)
