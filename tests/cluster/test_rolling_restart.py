"""`disagg restart --rolling` and `disagg role`: engines go one after the other, and a healthy pair is always kept."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from changing import apply, changing, in_virtual_time, tree

from disagg.cluster.change.outline import Outline, possible_stand_ins, questions
from disagg.errors import Problem, StartError
from disagg.host_spec import HostSpec
from disagg.planning.plan import Plan
from disagg.process.news import Ready
from disagg.registry.orders import Apply, ChangeRole, Restart, Stage
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.simulation.node import SimulatedNode
from disagg.simulation.world import SimulatedDeployment

TO_DECODE = ChangeRole("prefill-1", Role.DECODE)


class LeastReady:
    """The fewest engines of each role that were READY at a time."""

    def __init__(self, sim: SimulatedDeployment) -> None:
        self._sim = sim
        self.count = {"prefill": 99, "decode": 99}
        sim.registry.on_put = self._look

    def _look(self, _record: EngineRecord) -> None:
        for role in self.count:
            ready = [r for r in self._sim.registry.records.values() if r.role == role and r.state is State.READY]
            self.count[role] = min(self.count[role], len(ready))


def test_all_engines_start_again_one_after_the_other() -> None:
    async def scenario() -> None:
        async with changing(prefill=3) as (sim, operator):
            least = LeastReady(sim)
            await operator.has_done(Restart())
            assert operator.engines == {f"prefill-{n}": f"prefill-{n}#2" for n in range(3)} | {
                f"decode-{n}": f"decode-{n}#2" for n in range(2)
            }
            assert least.count == {"prefill": 2, "decode": 1}
            assert len(sim.changes.status().revisions) == 1, "nothing else is wanted than before"

    in_virtual_time(scenario)


def test_meanwhile_nobody_drains_another_one() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            await operator.begins(Restart((Role.DECODE,)))
            refused = await sim.changes.drain("prefill-1", False)
            assert refused is not None
            assert "'restart --rolling decode' is under way (change 1), and takes engines out too" in refused
            assert "there is no engine 'decode-7'" in (await sim.changes.drain("decode-7", False) or "")
            await operator.has_done(Restart((Role.DECODE,)))
            assert await sim.changes.drain("prefill-1", True) is None

    in_virtual_time(scenario)


def test_only_what_is_named_starts_again() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (_, operator):
            await operator.has_done(Restart(("decode-1", "prefill", "decode-1")))
            assert operator.engines == {
                "prefill-0": "prefill-0#2",
                "prefill-1": "prefill-1#2",
                "decode-0": "decode-0#1",
                "decode-1": "decode-1#2",
            }
            refused = await operator.asks(Restart(("decode-7",)))
            assert "there is no role or engine 'decode-7'; there are prefill, decode, prefill-0," in refused.why_not

    in_virtual_time(scenario)


def test_what_the_preflight_refuses_does_not_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node may have another SGLang by now."""

    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):

            async def refuses(_plan: Plan) -> list[Problem]:
                return [Problem("decode", "SGLang is not what it was", "install it again")]

            monkeypatch.setattr(sim.changes, "_preflight", refuses)
            assert "not what it was" in (await operator.asks(Restart(("decode",)))).why_not
            assert sim.changes.status().change is None

    in_virtual_time(scenario)


def test_another_stands_in_for_the_only_engine_of_a_role() -> None:
    async def scenario() -> None:
        async with changing(decode=1) as (sim, operator):
            least = LeastReady(sim)
            change = await operator.has_done(Restart(("decode",)))
            assert "decode-1 is removed" in change.lines
            assert (operator.engines["decode-0"], len(operator.engines)) == ("decode-0#2", 3)
            assert least.count["decode"] == 1

    in_virtual_time(scenario)


def test_without_room_for_a_stand_in_it_asks_first() -> None:
    async def scenario() -> None:
        async with changing(decode=1, room_max=3, loaded=False) as (_, operator):
            answer = await operator.asks(Restart(("decode",)))
            assert answer.question.startswith("decode-0 is the only decode engine, and there is no room for another")
            await operator.has_done(Restart(("decode",)), yes=True)
            assert operator.engines["decode-0"] == "decode-0#2"

    in_virtual_time(scenario)


def test_a_yes_to_what_was_not_asked_takes_no_service_away() -> None:
    """The stand-in finds its room gone."""

    async def scenario() -> None:
        async with changing(decode=1, room_max=4, loaded=False) as (sim, operator):
            least = LeastReady(sim)
            await operator.begins(Restart(("decode",)), yes=True)
            sim.places.room_max = 3
            change = await operator.ended()
            assert change.stage is Stage.FAILED
            assert "decode-0 is the only decode engine, and no other can stand in any more" in change.why
            assert least.count["decode"] == 1

    in_virtual_time(scenario)


def test_a_yes_is_for_the_role_that_was_asked_about() -> None:
    async def scenario() -> None:
        async with changing(prefill=1, decode=2, room_max=3, loaded=False) as (sim, operator):
            order = Restart(("prefill", "decode-0"))
            assert await sim.fleet.drain("decode-1", restart=False) is None
            await asyncio.sleep(5)
            assert (await operator.asks(order)).question.startswith("prefill-0 is the only prefill engine")
            await operator.begins(order, yes=True)
            await asyncio.sleep(20)
            assert (operator.engines["prefill-0"], operator.engines["decode-0"]) == ("prefill-0#2", "decode-0#1")
            assert await sim.fleet.drain("decode-1", restart=True) is None
            assert (await operator.ended()).stage is Stage.DONE

    in_virtual_time(scenario)


def test_an_engine_that_died_and_came_back_meanwhile_is_not_started_again() -> None:
    async def scenario() -> None:
        async with changing(prefill=2) as (sim, operator):
            await operator.begins(Restart())
            await asyncio.sleep(0.1)
            sim.hosts["decode-1"].kill()
            await operator.ended()
            assert operator.engines["decode-1"] == "decode-1#2"

    in_virtual_time(scenario)


@pytest.mark.parametrize("order", [Restart(("decode-1",)), apply(decode=1)], ids=str)
def test_of_an_engine_that_rests_nobody_says_that_it_drains(order: Restart | Apply) -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            assert await sim.fleet.drain("decode-1", restart=False) is None
            await asyncio.sleep(5)
            change = await operator.has_done(order)
            said = (
                "decode-1 rests, and starts again" if isinstance(order, Restart) else "decode-1 is dead, and is ended"
            )
            assert change.lines[0] == said
            assert operator.engines.get("decode-1") == ("decode-1#2" if isinstance(order, Restart) else None)

    in_virtual_time(scenario)


def test_nothing_drains_while_no_other_pair_is_healthy() -> None:
    async def scenario() -> None:
        async with changing() as (sim, operator):
            assert await sim.fleet.drain("decode-1", restart=False) is None
            await asyncio.sleep(5)
            await operator.begins(Restart(("decode-0",)))
            await asyncio.sleep(20)
            assert operator.engines["decode-0"] == "decode-0#1", "it has waited"
            assert await sim.fleet.drain("decode-1", restart=True) is None
            assert (await operator.ended()).stage is Stage.DONE
            assert operator.engines["decode-0"] == "decode-0#2"

    in_virtual_time(scenario)


def test_where_no_other_pair_gets_healthy_it_stops_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            assert await sim.fleet.drain("decode-1", restart=False) is None
            await asyncio.sleep(5)
            monkeypatch.setattr(sim.changes, "_start_s", 20.0)
            await operator.begins(Restart(("decode-0",)), yes=False)
            change = await operator.ended()
            assert change.stage is Stage.FAILED
            assert "decode-0 could not go: no other decode engine, with a peer that it has met," in change.why
            assert operator.engines["decode-0"] == "decode-0#1"
            assert await sim.fleet.drain("decode-1", restart=True) is None
            await asyncio.sleep(5)

    in_virtual_time(scenario)


def test_an_engine_gets_another_role_in_its_place() -> None:
    async def scenario() -> None:
        async with changing(room_max=4) as (sim, operator):
            taken = sim.places.taken
            await operator.has_done(TO_DECODE)
            assert sorted(operator.engines.values()) == ["decode-0#1", "decode-1#1", "decode-2#1", "prefill-0#1"]
            assert sim.places.taken == taken
            assert sim.changes.status().revisions[-1].what == "role prefill-1 decode"
            again = await operator.asks(TO_DECODE)
            assert again.lines == ("'role prefill-1 decode' is done already (change 1)",)
            await operator.has_done(ChangeRole("decode-0", Role.PREFILL))
            assert sorted(operator.engines) == ["decode-1", "decode-2", "prefill-0", "prefill-1"]
            assert operator.engines["prefill-1"] == "prefill-1#2"

    in_virtual_time(scenario)


def test_a_role_that_it_has_one_that_does_not_fit_and_the_last_of_its_own_are_refused_or_asked() -> None:
    async def scenario() -> None:
        large = tree()["decode"] | {"resources": {"cpus": 4}}
        async with changing(decode=2, aggregated=large, loaded=False) as (_, operator):
            for order, why in (
                (ChangeRole("prefill-7", Role.DECODE), "there is no engine 'prefill-7'"),
                (ChangeRole("decode-0", Role.DECODE), "decode-0 has the role decode already"),
                (ChangeRole("decode-0", Role.EMBEDDING), "this deployment has no embedding engines"),
                (
                    ChangeRole("decode-0", Role.AGGREGATED),
                    "decode-0 has 1 CPU, and engines of the role aggregated need 4 CPU here",
                ),
            ):
                assert why in (await operator.asks(order)).why_not
        async with changing(prefill=1, loaded=False) as (_, operator):
            answer = await operator.asks(ChangeRole("prefill-0", Role.DECODE))
            assert answer.question.startswith("no prefill engine is left then")

    in_virtual_time(scenario)


def test_an_engine_that_does_not_start_in_its_new_role_is_given_its_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    start = SimulatedNode.start

    async def fails(self: SimulatedNode, spec: HostSpec) -> Ready:
        if spec.engine_id == "decode-2":
            raise StartError("decode-2", "no such thing")
        return await start(self, spec)

    monkeypatch.setattr(SimulatedNode, "start", fails)

    async def scenario() -> None:
        async with changing(room_max=4) as (_, operator):
            await operator.begins(TO_DECODE)
            change = await operator.ended()
            assert (change.stage, "no such thing" in change.why) == (Stage.ROLLED_BACK, True)
            assert sorted(operator.engines.values()) == ["decode-0#1", "decode-1#1", "prefill-0#1", "prefill-1#2"]

    in_virtual_time(scenario)


def test_engines_of_several_models_are_told_apart() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, _):
            one = sim.plans["decode-0"]
            running = {name: dataclasses.replace(one, id=f"{name}.decode-0", group=name) for name in ("chat", "code")}
            running = {each.id: each for each in running.values()}
            outline = Outline(restarted=("code.decode-0",))
            assert [each.id for each in possible_stand_ins(outline, running)] == ["code.decode-1"]
            asked = questions(outline, running, sim.registry, ())
            assert asked["code", Role.DECODE].startswith(
                "code.decode-0 is the only decode engine of code, and there is no room"
            )

    in_virtual_time(scenario)
