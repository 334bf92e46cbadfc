"""A controller dies at any moment, and the next one adopts what serves: no life is ended, none comes twice, and no
request fails. In virtual time, over engines and frontends that do not notice."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any, Self

import test_models_come_and_go as several
import yaml
from changing import Load, Operator, configured, in_virtual_time

from disagg.cluster.adopting import adopt
from disagg.cluster.change.wanted import Wanted
from disagg.cluster.notes import CHANGES, IS_PLACED, WAS_READY, Earlier, NotedRegistry
from disagg.config.schema import Deployment
from disagg.registry.follower import Follower
from disagg.registry.keys import Keys
from disagg.registry.memory_store import Memory as Stored
from disagg.registry.memory_store import MemoryStore
from disagg.registry.orders import Apply, Rollback, Scale, Stage
from disagg.registry.publisher import Publisher
from disagg.registry.records import ControllerRecord, State
from disagg.roles import Role
from disagg.simulation.node import START_S
from disagg.simulation.world import SimulatedDeployment, WatchedRegistry

KEYS = Keys("prod", "changing", "smollm2")


class Memory:
    """Notes that outlive a controller."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = {}

    async def write(self, key: str, value: object | None) -> None:
        await asyncio.sleep(0.001)
        if value is None:
            self.all.pop(key, None)
        else:
            self.all[key] = value


class Noted(NotedRegistry, WatchedRegistry):
    pass


class World(SimulatedDeployment):
    """`dies` is the end of a controller, `follows` the beginning of the next one."""

    def __init__(self, deployment: Deployment | None = None) -> None:
        super().__init__(seed=1, deployment=deployment or configured())
        self.memory = self.notes = Memory()
        self.registry = Noted(self.notes)
        self.store, self.runs = Stored(), 0
        self.follower = Follower(MemoryStore(self.store), KEYS)
        self.publishing: asyncio.Task[None] | None = None

    @property
    def told(self) -> Follower:
        return self.follower

    async def control(self) -> None:
        await super().control()
        self.changes.keep = lambda kept: self.notes.write(CHANGES, kept)

    async def publish(self) -> None:
        self.runs += 1
        me = ControllerRecord(run=f"run-{self.runs}", host="here", pid=self.runs)
        publisher = Publisher(self.registry, MemoryStore(self.store), KEYS, me, 3.0, Random(1))
        await publisher.begin()
        self.publishing = asyncio.create_task(publisher.run())
        self.lost = publisher.end  # of its lease, once it has run out

    async def __aenter__(self) -> Self:
        entering = asyncio.create_task(super().__aenter__())
        await self.publish()
        await self.follower.connect()
        await entering
        self.memory.all |= {IS_PLACED: True, WAS_READY: True}
        return self

    async def __aexit__(self, *error: Any) -> None:
        await super().__aexit__(*error)
        assert self.publishing is not None
        self.publishing.cancel()
        await self.follower.close()

    async def dies(self) -> None:
        """As a process does: nothing that it does has a next step, and nothing is given back."""
        self.before = dict(self.memory.all)
        mine = [*self.fleet._common, *filter(None, [self.changes._task, self.publishing])]
        for engine in self.fleet._engines.values():
            mine += [task for task in (engine.task, engine.leaving) if task is not None]
        for live in self.fleet.prover.up.values():
            live.client.close()
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        self.memory.all = self.before
        await self.lost()

    async def follows(self) -> None:
        """Frontends know what they knew until the next controller has adopted all, as followers do."""
        earlier = Earlier.of(self.memory.all)
        self.registry = Noted(self.notes)
        await self.control()
        whole = self.registry, self.changes, self.models, self.adapters, self.fleet
        await adopt(earlier, *whole, await self.begun())
        await self.publish()
        self.fleet.begin()

    async def until_whole(self) -> None:
        """`settle` waits for the load, too."""
        async with asyncio.timeout(60):
            while not self.is_whole:
                await asyncio.sleep(0.05)

    @property
    def lives(self) -> dict[str, str]:
        return {name: host.life for name, host in self.hosts.items() if host.is_alive}


def test_what_serves_is_adopted_and_nothing_notices() -> None:
    async def scenario() -> None:
        async with World() as world:
            load, operator = Load(world), Operator(world)
            await asyncio.sleep(1)
            before, met = world.lives, set(world.registry.met)
            await world.dies()
            await asyncio.sleep(10)
            await world.follows()
            assert set(world.registry.met) == met, "no pair has to meet again"
            assert world.is_whole
            await asyncio.sleep(5)
            assert world.lives == before
            assert {record.restarts for record in world.registry.records.values()} == {0}
            await operator.has_done(Scale({Role.PREFILL: 3}))
            assert await load.end() > 200

    in_virtual_time(scenario)


def test_models_that_came_and_went_since_the_start_are_known_to_the_next_one() -> None:
    async def scenario() -> None:
        async with World(several.configured(a=several.PAIR, b=several.ALONE)) as world:
            load, operator = several.Load(world), Operator(world)
            await operator.has_done(several.apply(a=several.PAIR, c=several.THIRD), yes=True)
            before = world.lives
            await world.dies()
            world.hosts["c.aggregated-0"].kill()
            await asyncio.sleep(1)
            await world.follows()
            await world.until_whole()
            assert world.lives == before | {"c.aggregated-0": "c.aggregated-0#2"}
            assert sorted(world.registry.models) == ["a", "c"]
            await operator.has_done(several.apply(a=several.PAIR, c=several.THIRD, b=several.ALONE))
            numbers = [record.number for record in world.registry.models.values()]
            assert len(set(numbers)) == len(numbers) == 3
            await load.end()
            assert set(load.streams) == {"a", "b", "c"}

    in_virtual_time(scenario)


def test_a_death_while_a_model_comes_or_goes_ends_no_controller_after_it() -> None:
    """At any moment of it; the same order goes on from there, and another one takes it back."""

    async def dies_in(order: Apply, finally_: Apply, moment_s: float) -> bool:
        """Whether it was in the middle."""
        async with World(several.configured(a=several.PAIR, b=several.ALONE)) as world:
            operator = Operator(world)
            await operator.begins(order, yes=True)
            await asyncio.sleep(moment_s)
            await world.dies()
            for name, host in world.hosts.items():
                if name.startswith("c."):
                    host.kill()
            await world.follows()
            await asyncio.sleep(3)
            world.fleet.check()
            change = world.changes.status().change
            assert change is not None
            assert not any("it is not here" in record.detail for record in world.registry.records.values())
            answer = await operator.asks(finally_, yes=True)
            assert not answer.why_not
            await operator.ended()
            await world.until_whole()
            assert world.registry.models.keys() == yaml.safe_load(finally_.config)["models"].keys()
            return change.stage is Stage.FAILED

    async def scenario() -> None:
        comes = several.apply(a=several.PAIR, b=several.ALONE, c=several.THIRD)
        goes, back = several.apply(a=several.PAIR), several.apply(a=several.PAIR, b=several.ALONE)
        for order, others in ((comes, (comes, back)), (goes, (goes, back))):
            for finally_ in others:
                moments = [0.002, 0.03, 0.3]
                assert Counter([await dies_in(order, finally_, each) for each in moments])[True] > 1

    in_virtual_time(scenario)


def test_engines_of_a_model_that_nothing_tells_of_go_on_and_are_taken_out_by_the_next_change() -> None:
    async def scenario() -> None:
        async with World(several.configured(a=several.PAIR, b=several.ALONE)) as world:
            operator = Operator(world)
            await operator.has_done(several.apply(a=several.PAIR, b=several.ALONE, c=several.THIRD))
            kept = world.memory.all[CHANGES]
            await world.dies()
            of_start = Wanted.of(several.configured(a=several.PAIR, b=several.ALONE), "simulated", {})
            world.memory.all[CHANGES] = replace(kept, wanted=of_start)
            await world.follows()
            await asyncio.sleep(2)
            world.fleet.check()
            assert world.registry.records["c.aggregated-0"].state is State.READY
            world.hosts["c.aggregated-0"].kill()
            await asyncio.sleep(2)
            world.fleet.check()
            assert "it is not here" in world.registry.records["c.aggregated-0"].detail
            await operator.has_done(Scale({"b.aggregated": 2}), yes=True)
            assert sorted(world.registry.models) == ["a", "b"]

    in_virtual_time(scenario)


def test_a_key_that_came_back_as_another_model_stays_that_for_the_next_controller() -> None:
    async def scenario() -> None:
        other = several.ALONE | {"path": "b-other", "name": "other"}
        async with World(several.configured(a=several.PAIR, b=several.ALONE)) as world:
            operator = Operator(world)
            await operator.has_done(several.apply(a=several.PAIR), yes=True)
            await operator.has_done(several.apply(a=several.PAIR, b=other))
            await world.dies()
            await world.follows()
            assert world.adapters._models == {"a": "a", "b": "other"}

    in_virtual_time(scenario)


def test_an_engine_that_died_meanwhile_is_started_again_with_another_life() -> None:
    async def scenario() -> None:
        async with World() as world:
            before = world.lives
            await world.dies()
            world.hosts["decode-0"].kill()
            await asyncio.sleep(1)
            await world.follows()
            await world.until_whole()
            assert world.lives == before | {"decode-0": "decode-0#2"}
            assert world.registry.records["decode-0"].restarts == 1
            assert world.fleet.prover.gone == {"decode-0#1"}

    in_virtual_time(scenario)


def test_a_restart_that_was_under_way_is_begun_anew() -> None:
    async def scenario() -> None:
        async with World() as world:
            world.hosts["decode-0"].kill()
            while world.registry.records["decode-0"].incarnation == 1:
                await asyncio.sleep(0.01)
            await asyncio.sleep(START_S / 2)
            assert world.registry.records["decode-0"].state is State.STARTING
            await world.dies()
            await world.follows()
            await world.until_whole()
            assert world.lives["decode-0"] == "decode-0#3", "its second life was noted before it began"

    in_virtual_time(scenario)


def test_a_scale_that_was_under_way_has_failed_and_can_be_given_again() -> None:
    async def scenario() -> None:
        async with World() as world:
            load, operator = Load(world), Operator(world)
            await operator.begins(Scale({Role.PREFILL: 4}))
            await asyncio.sleep(0.2)
            assert "prefill-2" in world.registry.records
            await world.dies()
            await world.follows()
            change = world.changes.status().change
            assert change is not None
            assert change.stage is Stage.FAILED
            assert "goes back, to 1" in change.why
            await operator.has_done(Scale({Role.PREFILL: 4}))
            await operator.has_done(Rollback(1))
            await world.until_whole()
            assert sorted(world.lives) == ["decode-0", "decode-1", "prefill-0", "prefill-1"]
            assert [each.what for each in world.changes.status().revisions] == [
                "started",
                "scale prefill=4",
                "rollback --to 1",
            ]
            await load.end()

    in_virtual_time(scenario)


def test_one_that_was_drained_rests_and_one_that_was_being_drained_comes_back() -> None:
    async def scenario() -> None:
        async with World() as world:
            assert await world.changes.drain("decode-0", False) is None
            while world.registry.records["decode-0"].state is not State.DEAD:
                await asyncio.sleep(0.05)
            stream = world.open([1, *range(100)], 400)
            await stream.until_tokens(2)
            assert await world.changes.drain("prefill-0", False) is None
            await world.dies()
            await world.follows()
            await asyncio.sleep(10)
            records = world.registry.records
            assert records["decode-0"].state is State.DEAD
            assert records["decode-0"].detail == "drained"
            assert (records["prefill-0"].state, records["prefill-0"].incarnation) == (State.READY, 2)
            assert await world.changes.drain("decode-0", True) is None
            await world.until_whole()
            await stream.rest()

    in_virtual_time(scenario)


def test_no_life_comes_twice_however_often_controllers_die() -> None:
    async def scenario() -> None:
        async with World() as world:
            load, began = Load(world), Counter[str]()
            for moment in range(12):
                victim = ("decode-0", "prefill-1")[moment % 2]
                world.hosts[victim].kill()
                await asyncio.sleep(0.15 * moment)
                await world.dies()
                await world.follows()
                began.update({life for name, life in world.lives.items() if name == victim})
                await world.until_whole()
            assert len({record.life for record in world.registry.records.values()}) == 4
            await load.end()

    in_virtual_time(scenario)
