"""The prefix caches of all engines are emptied over the plane, unless something runs on one."""

from __future__ import annotations

import asyncio

from disagg.frontend.service import Service
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment, Stream

PROMPT = list(range(1000, 1300))
IDLE_S = 2.0  # canaries come to idle engines, too


def test_a_prompt_is_read_anew_after_a_flush_and_a_busy_engine_is_named() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=1, decode=1, seed=1, prefill_model={"cache_block_tokens": 16}) as sim:
            frontend = sim.frontends[0]
            service = Service(model_name="m", router=frontend.router, coordinator=frontend.coordinator, control=None)

            async def cached() -> int | None:
                stream = Stream(frontend, sim.request(PROMPT, 4))
                await stream.rest()
                await sim.settle()
                return stream.request.facts.cached_tokens

            assert (await cached(), await cached()) == (0, 288)
            assert await service.flush_caches(IDLE_S) == {"prefill-0#1": "", "decode-0#1": ""}
            assert await cached() == 0
            running = Stream(frontend, sim.request(PROMPT, 400))
            await running.until_tokens(1)
            assert "legs run" in (await service.flush_caches(0.0))["decode-0#1"]
            await running.leave()
            await sim.settle()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())


def test_an_engine_that_is_silent_is_no_engine_that_was_flushed() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=1, decode=1, seed=2) as sim:
            frontend = sim.frontends[0]
            service = Service(model_name="m", router=frontend.router, coordinator=frontend.coordinator, control=None)
            client = frontend.connections.clients["decode-0#1"]
            client.close()
            said = await service.flush_caches(IDLE_S)
            assert said["prefill-0#1"] == ""
            assert said["decode-0#1"]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())
