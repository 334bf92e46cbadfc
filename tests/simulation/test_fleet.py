"""Engines come and go at run time through one door; what fails, and how, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from disagg.cluster.fleet import PLACEMENT_S
from disagg.errors import StartError
from disagg.host_spec import HostSpec
from disagg.process.news import Ready
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.simulated_engine.tokens import answer
from disagg.simulation.loop import VirtualLoop
from disagg.simulation.node import END_S, START_S, SimulatedNode, SimulatedPlace
from disagg.simulation.world import SimulatedDeployment

PROMPT = list(range(1000, 1300))


def in_virtual_time(scenario: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())  # type: ignore[arg-type]


async def add(sim: SimulatedDeployment, role: Role, number: int) -> str:
    plan = sim.plan(role, number)
    await sim.fleet.add(plan)
    sim.plans[plan.id] = plan
    return plan.id


async def remove(sim: SimulatedDeployment, engine_id: str) -> None:
    del sim.plans[engine_id]
    await sim.fleet.remove(engine_id)


async def until(what: Callable[[], object], limit_s: float = 60.0) -> None:
    async with asyncio.timeout(limit_s):
        while not what():
            await asyncio.sleep(0.05)


def test_an_engine_that_is_added_meets_all_and_serves() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(seed=1, prefill=2, model={"requests_max": 1}) as sim:
            added = await add(sim, Role.DECODE, 1)
            assert sim.registry.records[added].state is State.NEW
            await until(lambda: sim.is_whole)
            streams = [sim.open([number, *PROMPT], 64) for number in range(2)]
            await streams[1].until_tokens(4)
            assert {sim.host_of(stream, Role.DECODE).engine_id for stream in streams} == {"decode-0", added}
            for number, stream in enumerate(streams):
                assert await stream.rest() == answer([number, *PROMPT], 64, ignore_eos=True)

    in_virtual_time(scenario)


def test_an_engine_that_is_removed_ends_what_it_has_and_leaves_nothing() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(seed=1, decode=2) as sim:
            stream = sim.open(PROMPT, 200)
            await stream.until_tokens(8)
            host = sim.host_of(stream, Role.DECODE)
            place, others = sim.places.by_engine[host.engine_id], {"prefill-0", "decode-0", "decode-1"}
            await remove(sim, host.engine_id)
            assert (host.is_alive, place.is_released) == (False, True)
            assert sim.registry.records.keys() == others - {host.engine_id}
            assert sim.registry.met.met_with(host.life) == set()
            assert host.life not in sim.fleet.prover.up
            assert not [task for task in asyncio.all_tasks() if host.engine_id in task.get_name()]
            assert await stream.rest() == answer(PROMPT, 200, ignore_eos=True)
            assert not stream.request.facts.lost_tries, "it was not cut"
            assert await sim.generate(PROMPT, 16) == answer(PROMPT, 16, ignore_eos=True)
            await sim.settle()

    in_virtual_time(scenario)


@pytest.mark.parametrize("state", ["hangs", "dead", "starting", "drained"])
def test_an_engine_is_removed_whatever_it_does(state: str) -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(seed=1, decode=2) as sim:
            host, supervisor = sim.hosts["decode-1"], sim.fleet.supervisor("decode-1")
            assert supervisor is not None
            match state:
                case "hangs":
                    host.freeze()
                case "dead":
                    host.kill()
                case "starting":
                    host.kill()
                    await until(lambda: sim.registry.records["decode-1"].life == "decode-1#2")
                case "drained":
                    assert await sim.fleet.drain("decode-1", restart=False) is None
                    await until(lambda: supervisor.record.state is State.DEAD)
            await asyncio.wait_for(asyncio.gather(remove(sim, "decode-1"), sim.fleet.remove("decode-1")), 20)
            assert not sim.hosts["decode-1"].is_alive
            assert "decode-1" not in sim.registry.records
            await sim.settle()

    in_virtual_time(scenario)


def test_a_success_that_is_still_being_noted_brings_no_removed_engine_back() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(seed=1) as sim:
            added = await add(sim, Role.DECODE, 1)
            answered, node = asyncio.Event(), sim.places.by_engine[added].node

            async def lane() -> str:
                asked.set()
                await answered.wait()
                return "tcp"

            asked, node.lane = asyncio.Event(), lane  # type: ignore[method-assign]
            await asked.wait()
            assert sim.registry.records[added].state is State.READY
            await remove(sim, added)
            answered.set()
            await asyncio.sleep(1)
            assert added not in sim.registry.records

    in_virtual_time(scenario)


def test_an_engine_that_is_removed_while_it_is_entered_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry may take its time."""

    async def scenario() -> None:
        async with SimulatedDeployment(seed=1) as sim:
            put = sim.registry.put

            async def slowly(record: EngineRecord) -> None:
                await asyncio.sleep(0.5)
                await put(record)

            monkeypatch.setattr(sim.registry, "put", slowly)
            adding = asyncio.create_task(sim.fleet.add(sim.plan(Role.DECODE, 1)))
            await asyncio.sleep(0.1)
            await sim.fleet.remove("decode-1")
            await adding
            monkeypatch.undo()
            assert "supervise decode-1" not in [task.get_name() for task in asyncio.all_tasks()]

    in_virtual_time(scenario)


def test_a_name_that_comes_again_has_no_life_twice() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(seed=1, decode=2) as sim:
            await remove(sim, "decode-1")
            await add(sim, Role.DECODE, 1)
            await until(lambda: sim.is_whole)
            assert sim.registry.records["decode-1"].life == "decode-1#2"

    in_virtual_time(scenario)


def test_a_name_is_taken_once_and_an_unknown_one_is_not_removed() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(seed=1) as sim:
            with pytest.raises(StartError, match="there is one of this name"):
                await sim.fleet.add(sim.plan(Role.DECODE, 0))
            with pytest.raises(KeyError):
                await sim.fleet.remove("decode-7")

    in_virtual_time(scenario)


def fail_to_start(monkeypatch: pytest.MonkeyPatch, engine_id: str, times: int) -> None:
    start, tried = SimulatedNode.start, 0

    async def try_to(self: SimulatedNode, spec: HostSpec) -> Ready:
        nonlocal tried
        if spec.engine_id == engine_id and tried < times:
            tried += 1
            raise StartError(spec.place, "no such model")
        return await start(self, spec)

    monkeypatch.setattr(SimulatedNode, "start", try_to)


@pytest.mark.parametrize("what", ["a taken name", "an error of the registry", "an error of the cluster"])
def test_of_several_that_cannot_all_be_added_nothing_stays(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(seed=1) as sim:
            one, other = sim.plan(Role.DECODE, 1), sim.plan(Role.DECODE, 2)
            put = sim.registry.put

            async def breaks(record: EngineRecord) -> None:
                await put(record)
                if record.id == other.id:
                    raise RuntimeError("away")

            async def granted(place: SimulatedPlace) -> None:
                raise RuntimeError("away")

            with monkeypatch.context() as broken:
                if "registry" in what:
                    broken.setattr(sim.registry, "put", breaks)
                if "cluster" in what:
                    broken.setattr(SimulatedPlace, "granted", granted)
                with pytest.raises(StartError if "name" in what else RuntimeError):
                    await sim.fleet.add_where_room([one, sim.plans["decode-0"] if "name" in what else other], 5.0)
            assert sim.registry.records.keys() == sim.plans.keys() == {"prefill-0", "decode-0"}
            assert (sim.places.taken, len(sim.fleet.supervisors)) == (2, 2)
            assert await sim.fleet.add_where_room([one, other], 5.0)
            sim.plans |= {each.id: each for each in (one, other)}
            await sim.settle()

    in_virtual_time(scenario)


def test_an_added_engine_that_does_not_start_is_tried_again_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(seed=1) as sim:
            fail_to_start(monkeypatch, "decode-1", times=3)
            added = await add(sim, Role.DECODE, 1)
            await until(lambda: sim.registry.records[added].restarts == 2)
            record = sim.registry.records[added]
            assert (record.state, "no such model" in record.detail) == (State.DEAD, True)
            assert await sim.generate(PROMPT, 16) == answer(PROMPT, 16, ignore_eos=True)
            await until(lambda: sim.is_whole)
            sim.fleet.check()
            assert sim.registry.records[added].life == f"{added}#4"

    in_virtual_time(scenario)


def test_a_first_start_that_fails_is_the_end_of_the_deployments_start(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_start(monkeypatch, "decode-0", times=1)

    async def scenario() -> None:
        with pytest.raises(StartError, match="no such model"):
            async with SimulatedDeployment(seed=1):
                pass

    in_virtual_time(scenario)


def test_a_cluster_without_room_for_all_is_told_before_any_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: SimulatedPlace) -> None:
        if self.node.name == "decode-0":
            await asyncio.Event().wait()

    monkeypatch.setattr(SimulatedPlace, "granted", never)

    async def scenario() -> None:
        sim = SimulatedDeployment(seed=1)
        with pytest.raises(StartError, match="no room for the engines: they need prefill-0: 1 CPU 0 GPU, decode-0"):
            async with sim:
                pass
        assert asyncio.get_running_loop().time() == PLACEMENT_S
        assert not sim.hosts

    in_virtual_time(scenario)


def test_whoever_comes_up_meets_others_while_a_peer_does_not_answer() -> None:
    """A probe may take half a minute; a simulated engine's takes a quarter of a second."""

    async def scenario() -> None:
        async with SimulatedDeployment(seed=1, prefill=3) as sim:
            sim.hosts["prefill-0"].engine.lose_transfers(1 << 60)
            sim.hosts["decode-0"].kill()
            await until(lambda: sim.registry.records["decode-0"].life == "decode-0#2")
            await until(lambda: sim.registry.records["decode-0"].state is State.READY, 4)
            met = sim.registry.met
            await until(lambda: met.met_with("decode-0#2") == {"prefill-1#1", "prefill-2#1"}, 2)

    in_virtual_time(scenario)


@pytest.mark.parametrize("what", ["host", "rank"])
@pytest.mark.parametrize("number", range(3))
def test_whoever_comes_up_meets_a_peer_that_hangs_last(number: int, what: str) -> None:
    """Such a peer is found to be sick after some 3 s; until then nobody waits for it."""

    async def scenario() -> None:
        async with SimulatedDeployment(seed=1, prefill=3) as sim:
            hangs = sim.hosts[f"prefill-{number}"]
            (hangs if what == "host" else hangs.engine).freeze()
            await asyncio.sleep(1.0)
            sim.hosts["decode-0"].kill()
            await until(lambda: sim.registry.records["decode-0"].life == "decode-0#2")
            await until(lambda: sim.registry.records["decode-0"].state is State.READY, 0.7)
            assert sim.registry.records[hangs.engine_id].state is State.READY, "it is not known yet"
            await sim.settle()

    in_virtual_time(scenario)


@pytest.mark.parametrize("killed", ["prefill-0", "decode-0"])
def test_an_engine_that_starts_again_is_ready_when_it_has_met_one(killed: str) -> None:
    """Of the time from its death on, nothing is the control plane's own: it starts, its ranks register, it moves KV."""

    async def scenario() -> None:
        async with SimulatedDeployment(seed=1, prefill=2, decode=2) as sim:
            began_s = asyncio.get_running_loop().time()
            sim.hosts[killed].kill()
            while sim.registry.records[killed].life != f"{killed}#2" or not sim.registry.met.met_with(f"{killed}#2"):
                await asyncio.sleep(0.001)
            assert sim.registry.records[killed].state is State.READY
            took_s = asyncio.get_running_loop().time() - began_s
            registering_s = sim.hosts[killed].engine.model.register_s if killed.startswith("prefill") else 0.0
            assert took_s < END_S[1] + START_S + registering_s + 0.06

    in_virtual_time(scenario)


def test_an_engine_that_is_ready_for_nobody_any_more_is_replaced() -> None:
    """It moves no KV, and all it had met have been started again since: canaries have no pair of it to try."""

    async def scenario() -> None:
        async with SimulatedDeployment(seed=1, prefill=2) as sim:
            sim.hosts["prefill-0"].engine.lose_transfers(1 << 60)
            sim.hosts["decode-0"].kill()
            await until(lambda: sim.registry.records["prefill-0"].life == "prefill-0#2", 150)
            await until(lambda: sim.is_whole)
            assert sim.registry.records["prefill-1"].life == "prefill-1#1"

    in_virtual_time(scenario)


def test_a_short_cut_off_costs_no_engine_its_life() -> None:
    """Its host and its bootstrap server are both not heard: that says nothing of the server."""

    async def scenario() -> None:
        async with SimulatedDeployment(seed=1) as sim:
            for wait_s in (0.0, 0.3, 0.6, 0.9):
                await asyncio.sleep(wait_s)
                sim.network.silence(sim.hosts["prefill-0"].name)
                await asyncio.sleep(2.5)
                sim.network.heal(sim.hosts["prefill-0"].name)
                await asyncio.sleep(10)
            assert sim.registry.records["prefill-0"].life == "prefill-0#1"

    in_virtual_time(scenario)
