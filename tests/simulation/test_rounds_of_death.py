"""Fifty rounds of kill and rejoin: nothing grows."""

from __future__ import annotations

import asyncio
import gc

import pytest

from disagg.roles import Role
from disagg.simulated_engine.tokens import answer
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment

ROUNDS = 50


@pytest.mark.slow
def test_fifty_rounds_of_kill_and_rejoin_leave_nothing() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=2, decode=2, seed=11) as sim:

            async def one_round(number: int) -> None:
                prompt = [number, *range(100)]
                streams = [sim.open([each, *prompt], 60) for each in range(4)]
                await streams[0].until_tokens(5)
                sim.host_of(streams[0], (Role.DECODE, Role.PREFILL)[number % 2]).kill()
                for each, stream in enumerate(streams):
                    assert await stream.rest() == answer([each, *prompt], 60, ignore_eos=True)
                await asyncio.sleep(5)
                await sim.settle()

            def sizes() -> dict[str, int]:
                gc.collect()
                return {
                    "tasks": len(asyncio.all_tasks()),
                    "links": sum(
                        link.is_open for host in sim.hosts.values() for link in sim.network.links_of(host.name)
                    ),
                    "connections": sum(len(frontend.connections.clients) for frontend in sim.frontends),
                    "objects": len(gc.get_objects()),
                }

            for number in range(5):
                await one_round(number)
            before = sizes()
            for number in range(ROUNDS):
                await one_round(number)
            after = sizes()
            objects = after.pop("objects") - before.pop("objects")
            assert after == before
            remembered = 40 * 4 * ROUNDS  # ended requests with their timelines are kept, a bounded number of them
            assert objects < remembered, objects
            assert not any(sim.gauges().values())

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())
