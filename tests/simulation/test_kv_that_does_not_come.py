"""An engine that does all but move KV is busy, so no idle canary tries it: its lost transfers tell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from disagg.cluster import canaries
from disagg.coordinator.limits import Limits
from disagg.roles import Role
from disagg.simulated_engine.tokens import answer
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.world import SimulatedDeployment, Stream

LIMITS = Limits(transfer_s=2.0)
CLIENTS = 4


async def _ask_without_end(sim: SimulatedDeployment, client: int) -> None:
    count = 0
    while True:
        count += 1
        prompt = [client, count, *range(100)]
        assert await sim.generate(prompt, 20) == answer(prompt, 20, ignore_eos=True)


def _with_busy_engines(scenario: Callable[[SimulatedDeployment], Awaitable[None]]) -> None:
    errors: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with SimulatedDeployment(prefill=2, decode=2, seed=5, limits=LIMITS) as sim:
            clients = [asyncio.create_task(_ask_without_end(sim, client)) for client in range(CLIENTS)]
            await asyncio.sleep(5)
            await scenario(sim)
            for client in clients:
                client.cancel()
            ended = await asyncio.gather(*clients, return_exceptions=True)
            assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())
    assert errors == []


def _incarnations(sim: SimulatedDeployment) -> dict[str, int]:
    return {record.id: record.incarnation for record in sim.registry.records.values()}


ALL_FIRST = {"prefill-0": 1, "prefill-1": 1, "decode-0": 1, "decode-1": 1}


def test_a_busy_prefill_whose_kv_goes_nowhere_is_replaced_and_nobody_else() -> None:
    async def scenario(sim: SimulatedDeployment) -> None:
        sim.hosts["prefill-0"].engine.lose_transfers(1 << 60)
        async with asyncio.timeout(60):
            while sim.registry.records["prefill-0"].incarnation == 1 or not sim.is_whole:
                await asyncio.sleep(0.5)
        assert _incarnations(sim) == ALL_FIRST | {"prefill-0": 2}

    _with_busy_engines(scenario)


def test_one_lost_transfer_costs_no_engine() -> None:
    async def scenario(sim: SimulatedDeployment) -> None:
        sim.hosts["prefill-0"].engine.lose_transfers()
        await asyncio.sleep(30)
        assert _incarnations(sim) == ALL_FIRST

    _with_busy_engines(scenario)


def test_a_prefill_with_too_much_to_do_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary's prompt is not read in time: of the KV nothing is known."""
    monkeypatch.setattr(canaries, "BUSY_LIMIT_S", 3.0)

    async def scenario(sim: SimulatedDeployment) -> None:
        stream = Stream(sim.frontends[0], sim.request([*range(20_000)], 1))
        while stream.request.facts.prefill is None:
            await asyncio.sleep(0.1)
        prefill, decode = sim.host_of(stream, Role.PREFILL), sim.host_of(stream, Role.DECODE)
        prefill.engine.slow(1e6)
        sim.fleet.transfer_lost(prefill.life, decode.life)
        await asyncio.sleep(20)  # two tries, and witnesses
        assert _incarnations(sim) == ALL_FIRST
        prefill.engine.slow(1.0)

    _with_busy_engines(scenario)


def test_a_stage_that_is_told_after_the_canary_was_given_up_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompt is read just after that: the leg's frames still come."""

    async def scenario(sim: SimulatedDeployment) -> None:
        for number in range(20):
            monkeypatch.setattr(canaries, "BUSY_LIMIT_S", 0.002 * (number + 1))
            sim.fleet.transfer_lost("prefill-0#1", "decode-0#1")
            await asyncio.sleep(1.1)
        sim.fleet.check()
        assert _incarnations(sim) == ALL_FIRST

    _with_busy_engines(scenario)
