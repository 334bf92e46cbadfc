"""A request under which engines die: it gets its error after two of them, and those beside it get their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from disagg.coordinator.limits import Limits
from disagg.coordinator.phases import Phase
from disagg.coordinator.suspects import PROVEN_TOKENS
from disagg.errors import SuspectedPoison
from disagg.roles import Role
from disagg.simulated_engine.poison import Poison
from disagg.simulated_engine.tokens import answer
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment, Stream

PROMPT = [*range(1000, 1300)]
OUTPUT = 120
SEEDS = range(2)
SHAPES = [(1, 1), (2, 2)]
PREFILL, DECODE = Role.PREFILL.value, Role.DECODE.value


def run(scenario: Callable[[SimulatedDeployment], Awaitable[Any]], engines: tuple[int, int], seed: int) -> Any:
    async def main() -> Any:
        limits = Limits(no_pair_s=20.0)
        async with SimulatedDeployment(*engines, seed=seed, frontends=1, limits=limits) as world:
            found = await scenario(world)
            await world.settle()
            return found

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def deaths(world: SimulatedDeployment) -> int:
    return sum(host.incarnation - 1 for host in world.hosts.values())


def bystanders(world: SimulatedDeployment, count: int, tokens: int = OUTPUT) -> list[Stream]:
    return [world.open([number + 1, *PROMPT], tokens) for number in range(count)]


async def all_end_well(streams: list[Stream]) -> None:
    for stream in streams:
        ids = await stream.rest()
        assert ids == answer(stream.request.prompt_ids, stream.request.max_tokens, True), stream.request.facts


def poison(role: str, after: int, **more: Any) -> Poison:
    """After so many tokens of the answer; of prefill: with the prompt."""
    return Poison(role, len(PROMPT) + 1 + after, **more)


async def its_error(stream: Stream) -> SuspectedPoison:
    with pytest.raises(SuspectedPoison) as caught:
        await stream.rest()
    assert stream.request.phase is Phase.FAILED
    return caught.value


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("engines", SHAPES, ids=str)
@pytest.mark.parametrize(("role", "after"), [(PREFILL, 0), (DECODE, 1), (DECODE, 5), (DECODE, 60)])
def test_alone_it_kills_two_engines_and_no_third(role: str, after: int, engines: tuple[int, int], seed: int) -> None:
    async def scenario(world: SimulatedDeployment) -> None:
        killer = world.open([9, *PROMPT], OUTPUT, poison=poison(role, after))
        error = await its_error(killer)
        assert (error.http_status, error.code) == (422, "suspected_poison")
        assert error.message.startswith("2 engines died while they ran this request, the last one with nothing else")
        assert killer.ids == answer(killer.request.prompt_ids, OUTPUT, True)[: len(killer.ids)]
        await world.settle()
        assert deaths(world) == 2
        await all_end_well(bystanders(world, 3))  # the next ones
        assert deaths(world) == 2

    run(scenario, engines, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("role", "engines"), [(PREFILL, (1, 4)), (DECODE, (4, 1))])
def test_it_is_alone_with_the_canaries_of_an_engine_that_was_just_started(
    role: str, engines: tuple[int, int], seed: int
) -> None:
    """Such an engine is READY from the first peer that it has met on, and meets the others meanwhile."""

    async def scenario(world: SimulatedDeployment) -> None:
        error = await its_error(world.open([9, *PROMPT], OUTPUT, poison=poison(role, 0 if role is PREFILL else 1)))
        assert error.message.startswith("2 engines died while they ran this request, the last one with nothing else")
        await world.settle()
        assert deaths(world) == 2

    run(scenario, engines, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("engines", SHAPES, ids=str)
@pytest.mark.parametrize(("role", "after"), [(PREFILL, 0), (DECODE, 1), (DECODE, 2)])
def test_those_beside_it_lose_one_engine_and_no_token(
    role: str, after: int, engines: tuple[int, int], seed: int
) -> None:
    async def scenario(world: SimulatedDeployment) -> None:
        running = bystanders(world, 8)
        for stream in running:
            await stream.until_tokens(PROVEN_TOKENS + 2)
        killer = world.open([9, *PROMPT], OUTPUT, poison=poison(role, after))
        await its_error(killer)
        await all_end_well(running)
        await world.settle()
        assert deaths(world) == 2
        assert all(stream.request.tries <= 2 for stream in running), "only the first death was theirs, too"

    run(scenario, engines, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("engines", SHAPES, ids=str)
def test_those_that_began_with_it_are_told_apart(engines: tuple[int, int], seed: int) -> None:
    """All of them are new where the first engine dies: each is tried alone, one after the other."""

    async def scenario(world: SimulatedDeployment) -> None:
        began = bystanders(world, 5)
        killer = world.open([9, *PROMPT], OUTPUT, poison=poison(DECODE, 2))
        began += bystanders(world, 5)
        await its_error(killer)
        await all_end_well(began)
        await world.settle()
        assert deaths(world) == 2

    run(scenario, engines, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("engines", SHAPES, ids=str)
def test_one_that_kills_late_and_in_company_is_found_at_the_third_engine(engines: tuple[int, int], seed: int) -> None:
    async def scenario(world: SimulatedDeployment) -> None:
        running = bystanders(world, 6)
        killer = world.open([9, *PROMPT], OUTPUT, poison=poison(DECODE, 60))
        await its_error(killer)
        await all_end_well(running)
        await world.settle()
        assert deaths(world) <= 3

    run(scenario, engines, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("engines", SHAPES, ids=str)
def test_one_that_kills_only_in_company_ends_or_is_found(engines: tuple[int, int], seed: int) -> None:
    """As 1e-40 did on a CPU: alone it answers. Its trials pass, and yet it must not go on for ever."""

    async def scenario(world: SimulatedDeployment) -> int:
        running = bystanders(world, 6, tokens=200)
        for stream in running:
            await stream.until_tokens(PROVEN_TOKENS + 2)
        killer = world.open([9, *PROMPT], 200, poison=poison(DECODE, 1, in_company=True))
        await all_end_well(running)
        await asyncio.wait([killer.task])
        await world.settle()
        return deaths(world)

    assert run(scenario, engines, seed) <= 6


@pytest.mark.parametrize("seed", SEEDS)
def test_many_of_them_use_up_nobodys_migrations(seed: int) -> None:
    async def scenario(world: SimulatedDeployment) -> None:
        running = bystanders(world, 6, tokens=1500)
        for number in range(6):  # twice as many as the limit of migrations
            for stream in running:
                await stream.until_tokens(len(stream.ids) + PROVEN_TOKENS + 2)
            killer = world.open([number + 20, *PROMPT], OUTPUT, poison=poison(DECODE, 1))
            await its_error(killer)
        await all_end_well(running)
        assert max(len(stream.request.facts.lost_tries) for stream in running) > 3
        await world.settle()
        assert deaths(world) == 12

    run(scenario, (2, 2), seed)


@pytest.mark.parametrize("seed", range(6))
def test_any_mixture_of_them_loses_no_bystander(seed: int) -> None:
    async def scenario(world: SimulatedDeployment) -> None:
        random = Random(seed)
        killers: list[Stream] = []
        others: list[Stream] = []
        for number in range(40):
            await asyncio.sleep(random.uniform(0, 0.4))
            prompt = [number + 1, *PROMPT]
            if number % 10 == 5:
                role, after = random.choice([(PREFILL, 0), (DECODE, 1), (DECODE, 2), (DECODE, 30)])
                killers.append(world.open(prompt, OUTPUT, poison=poison(role, after)))
            else:
                others.append(world.open(prompt, random.randint(1, OUTPUT)))
        await all_end_well(others)
        for killer in killers:
            await its_error(killer)
        await world.settle()
        assert deaths(world) <= 3 * len(killers)

    run(scenario, (3, 3), seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
@pytest.mark.parametrize("engines", SHAPES, ids=str)
def test_an_engine_that_dies_of_itself_costs_nobody_his_answer(engines: tuple[int, int], role: Role, seed: int) -> None:
    """Whoever is new there is a suspect, and is cleared."""

    async def scenario(world: SimulatedDeployment) -> None:
        running = bystanders(world, 8)
        new = world.open([9, *PROMPT], OUTPUT)
        wanted = Phase.PREFILLING if role is Role.PREFILL else Phase.DECODING
        while new.request.phase is not wanted:
            await asyncio.sleep(0.001)
        world.host_of(new, role).kill()
        await all_end_well([new, *running])
        assert [each.life.split("-")[0] for each in new.request.blames] == [role.value]
        assert new.request.tries == 2

    run(scenario, engines, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_is_sent_to_a_suspect_before_it_is_cleared(seed: int) -> None:
    async def scenario(world: SimulatedDeployment) -> None:
        suspect = world.open([9, *PROMPT], OUTPUT)
        await suspect.until_tokens(2)
        world.host_of(suspect, Role.DECODE).kill()
        while suspect.request.phase is not Phase.MIGRATING:
            await asyncio.sleep(0.001)
        others = bystanders(world, 4, tokens=20)
        before = len(suspect.ids)
        while len(suspect.ids) < before + PROVEN_TOKENS:
            assert all(not other.ids and other.request.phase is Phase.QUEUED for other in others)
            await suspect.until_tokens(len(suspect.ids) + 1)
        await all_end_well([suspect, *others])
        assert all(other.request.tries == 1 for other in others)

    run(scenario, (1, 1), seed)


def test_a_connection_that_was_cut_is_no_death() -> None:
    async def scenario(world: SimulatedDeployment) -> None:
        stream = world.open([9, *PROMPT], OUTPUT)
        await stream.until_tokens(2)
        decode = world.host_of(stream, Role.DECODE)
        for link in list(world.network.links.values()):
            if link.hosts == (world.frontends[0].name, decode.name):
                link.cut("Connection reset by peer")
        await all_end_well([stream])
        assert stream.request.tries == 2
        assert stream.request.blames == []
        assert deaths(world) == 0

    run(scenario, (1, 1), 1)
