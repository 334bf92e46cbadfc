"""Logprobs are joined from both legs, each beside its own token, whatever dies: the prompt's are prefill's to tell."""

from __future__ import annotations

import asyncio

import pytest

from disagg.coordinator.phases import Phase
from disagg.roles import Role
from disagg.simulated_engine.tokens import answer, logprobs_of, prompt_logprobs_of
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment, Stream

PROMPT = list(range(1000, 1300))
TOKENS, TOP = 120, 3
ASKS = {"return_logprob": True, "top_logprobs_num": TOP}


class Watched(Stream):
    """Notes what the logprobs of a piece's tokens were when the piece came."""

    told = 0
    chosen: tuple[int, ...] = ()

    def put(self, text: str, token_ids: list[int]) -> None:
        upto = len(self.ids) + len(token_ids)
        assert self.request.logprobs[len(self.ids) : upto] == logprobs_of(token_ids, TOP, self.chosen)
        if "logprob_start_len" in self.request.asks:
            assert self.request.prompt_logprobs is not None, "tokens came before the logprobs of the prompt"
        super().put(text, token_ids)


def ask(sim: SimulatedDeployment, *, with_prompt: bool) -> Watched:
    request = sim.request(PROMPT, TOKENS)
    request.asks = ASKS | ({"logprob_start_len": 0} if with_prompt else {})
    return Watched(sim.frontends[0], request)


async def check(stream: Watched, *, with_prompt: bool) -> None:
    assert await stream.rest() == answer(PROMPT, TOKENS, ignore_eos=True)
    assert stream.request.logprobs == logprobs_of(stream.ids, TOP)
    assert stream.request.prompt_logprobs == (prompt_logprobs_of(PROMPT, TOP) if with_prompt else None)


@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
@pytest.mark.parametrize("after", [0, 1, 50])
def test_an_engine_dies_and_each_token_keeps_its_logprob(role: Role, after: int, with_prompt: bool) -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(prefill=2, decode=2, seed=after) as sim:
            stream = ask(sim, with_prompt=with_prompt)
            if after:
                await stream.until_tokens(after)
            else:
                while stream.request.facts.decode is None:
                    await asyncio.sleep(0.001)
            sim.host_of(stream, role).kill()
            await check(stream, with_prompt=with_prompt)
            await sim.settle()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())


def test_a_prefill_that_dies_before_it_told_the_prompts_logprobs_costs_another_try() -> None:
    """Its KV has arrived, so the answer could go on; but the prompt's logprobs come first, and they are lost."""

    async def scenario() -> None:
        async with SimulatedDeployment(prefill=2, decode=2, seed=3, decode_model={"step_s": 0.05}) as sim:
            stream = ask(sim, with_prompt=True)
            while stream.request.phase is not Phase.TRANSFERRING:
                await asyncio.sleep(0.0005)
            host = sim.host_of(stream, Role.PREFILL)
            sim.network.silence(host.name)  # its last word does not come
            await check(stream, with_prompt=True)
            assert stream.request.tries > 1
            sim.network.heal(host.name)
            await asyncio.sleep(10)
            await sim.settle()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("role", [None, Role.PREFILL, Role.DECODE])
@pytest.mark.parametrize("after", [0, 1, 50])
def test_each_token_has_the_logprobs_of_chosen_ids_whichever_leg_made_it(role: Role | None, after: int) -> None:
    """Prefill hands its token over without them, at the begin and after each migration."""

    async def scenario() -> None:
        async with SimulatedDeployment(prefill=2, decode=2, seed=after) as sim:
            request = sim.request(PROMPT, TOKENS)
            request.asks = ASKS | {"token_ids_logprob": [7, 8]}
            stream = Watched(sim.frontends[0], request)
            stream.chosen = (7, 8)
            if after:
                await stream.until_tokens(after)
            else:
                while stream.request.facts.decode is None:
                    await asyncio.sleep(0.001)
            if role is not None:
                sim.host_of(stream, role).kill()
            assert await stream.rest() == answer(PROMPT, TOKENS, ignore_eos=True)
            assert stream.request.logprobs == logprobs_of(stream.ids, TOP, (7, 8))
            await sim.settle()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())
