"""A whole deployment in virtual time: the same coordinator, router and plane as in earnest."""

from __future__ import annotations

import asyncio

import pytest

from disagg.roles import Role
from disagg.simulated_engine.tokens import answer
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment

PROMPT = list(range(1000, 1300))


def run(scenario):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scenario)


def test_it_answers_and_holds_nothing_afterwards() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=2, decode=2, seed=1, model={"ranks": 2}) as sim:
            assert await sim.generate(PROMPT, 64) == answer(PROMPT, 64, ignore_eos=True)
            await sim.settle()

    run(scenario())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
@pytest.mark.parametrize("fault", ["kill", "freeze", "host freeze", "dead scheduler"])
def test_an_engine_fails_mid_stream_and_the_client_still_gets_the_same_tokens(
    seed: int, role: Role, fault: str
) -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=2, decode=2, seed=seed) as sim:
            stream = sim.open(PROMPT, 200)
            await stream.until_tokens(sim.random.randrange(1, 190))
            host = sim.host_of(stream, role)
            match fault:
                case "kill":
                    host.kill()
                case "freeze":
                    host.engine.freeze()
                case "host freeze":
                    host.freeze()
                case "dead scheduler":
                    host.engine.kill_scheduler()
            assert await stream.rest() == answer(PROMPT, 200, ignore_eos=True)
            assert len(stream.request.facts.lost_tries) == (role is Role.DECODE)
            await asyncio.sleep(5)  # the last of these faults to be found takes 4 s
            await sim.settle()
            assert host.life not in {each.life for each in sim.hosts.values()}

    run(scenario())
