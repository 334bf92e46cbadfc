"""`disagg scale`: engines of a role come and go while requests run, and none of them fails."""

from __future__ import annotations

import asyncio
from time import time
from types import SimpleNamespace

import pytest
from changing import Operator, changing, configured, in_virtual_time

from disagg.cluster.change import keeper
from disagg.cluster.change.keeper import Changes
from disagg.cluster.change.wanted import free_name, named
from disagg.cluster.controller import Controller
from disagg.cluster.notes import NoNotes
from disagg.errors import Problem, StartError
from disagg.host_spec import HostSpec
from disagg.planning.plan import Plan, resolve_parts
from disagg.process.news import Ready
from disagg.registry.orders import Asked, Restart, Scale, Stage, Stop
from disagg.roles import Role
from disagg.simulation.node import SimulatedNode
from disagg.simulation.world import _nothing

UP, DOWN = Scale({Role.PREFILL: 3, Role.DECODE: 4}), Scale({Role.PREFILL: 1, Role.DECODE: 1})
DECODES = Scale({Role.DECODE: 3})


def test_up_and_down_again_and_no_request_fails() -> None:
    async def scenario() -> None:
        async with changing() as (sim, operator):
            await operator.has_done(UP)
            assert sorted(operator.engines) == [*(f"decode-{n}" for n in range(4)), *(f"prefill-{n}" for n in range(3))]
            await operator.has_done(DOWN)
            assert operator.engines == {"prefill-0": "prefill-0#1", "decode-0": "decode-0#1"}
            await operator.has_done(DECODES)
            assert operator.engines["decode-1"] == "decode-1#2", "a name that comes again has no life twice"
            assert [each.what for each in sim.changes.status().revisions] == [
                "started",
                str(UP),
                str(DOWN),
                str(DECODES),
            ]

    in_virtual_time(scenario)


def test_the_highest_numbers_go_first_also_where_there_are_gaps() -> None:
    async def scenario() -> None:
        async with changing(decode=3, loaded=False) as (sim, _):
            plans = {each.plan.id: each.plan for each in sim.fleet.supervisors}
            gap = {name: plan for name, plan in plans.items() if name != "decode-1"}
            wanted = [plan for plan in plans.values() if plan.role is Role.DECODE][:1]
            assert list(named(wanted, gap)) == ["decode-0"]
            assert list(named(wanted * 3, gap)) == ["decode-0", "decode-2", "decode-1"]

    in_virtual_time(scenario)


def test_a_cluster_without_room_refuses_and_all_is_as_it_was() -> None:
    async def scenario() -> None:
        async with changing(room_max=4) as (sim, operator):
            assert (await operator.asks(DECODES)).change == 1
            change = await operator.ended()
            assert change.stage is Stage.ROLLED_BACK
            assert "the cluster has no room: decode-2: 1 CPU; it has room for 4 engines; add nodes" in change.why
            assert sorted(operator.engines) == ["decode-0", "decode-1", "prefill-0", "prefill-1"]
            assert len(sim.changes.status().revisions) == 1

    in_virtual_time(scenario)


def test_where_there_is_no_room_beside_them_engines_that_go_make_room_for_those_that_come() -> None:
    async def scenario() -> None:
        async with changing(room_max=4) as (_, operator):
            order = Scale({Role.PREFILL: 1, Role.DECODE: 3})
            seen = await operator.asks(order, dry_run=True)
            change = await operator.has_done(order)
            said = "there is no room for all at once: engines are removed as far as others need their places"
            assert said in seen.lines
            assert said in change.lines
            assert sorted(operator.engines) == ["decode-0", "decode-1", "decode-2", "prefill-0"]

    in_virtual_time(scenario)


def test_what_the_preflight_refuses_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):

            async def refuses(plan: Plan) -> list[Problem]:
                assert len(plan.of_role(Role.DECODE)) == 3
                return [Problem("decode", "needs more than there is", "take fewer")]

            monkeypatch.setattr(sim.changes, "_preflight", refuses)
            answer = await operator.asks(DECODES)
            assert answer.why_not == "decode: needs more than there is; take fewer"
            assert sim.changes.status().change is None

    in_virtual_time(scenario)


def test_an_error_that_nobody_foresaw_is_told_and_the_next_order_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):

            async def breaks(_plan: Plan) -> list[Problem]:
                raise RuntimeError("Ray is away")

            with monkeypatch.context() as broken:
                broken.setattr(sim.changes, "_preflight", breaks)
                assert "RuntimeError: Ray is away" in (await operator.asks(DECODES)).why_not
            await operator.has_done(DECODES)

    in_virtual_time(scenario)


def test_a_role_without_a_pool_and_a_count_that_is_none_are_refused() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (_, operator):
            answer = await operator.asks(Scale({Role.AGGREGATED: 1}))
            assert "has no aggregated engines" in answer.why_not
            assert "disagg apply" in answer.why_not
            assert "say 0 to 1000" in (await operator.asks(Scale({Role.DECODE: 1001}))).why_not

    in_virtual_time(scenario)


def test_a_role_that_is_to_have_no_engine_asks_first_and_can_come_back() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (_, operator):
            nobody = Scale({Role.DECODE: 0})
            answer = await operator.asks(nobody)
            assert (answer.change, answer.question[:34]) == (0, "no decode engine is left then, and")
            await operator.has_done(nobody, yes=True)
            assert sorted(operator.engines) == ["prefill-0", "prefill-1"]
            await operator.has_done(DECODES)
            assert operator.engines["decode-0"] == "decode-0#2"

    in_virtual_time(scenario)


def test_the_last_ready_engine_of_a_role_is_asked_about() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            assert await sim.fleet.drain("decode-0", restart=False) is None
            await asyncio.sleep(5)
            answer = await operator.asks(Scale({Role.DECODE: 1}))
            assert answer.question == "decode-1 is the last decode engine that is ready"
            assert await sim.fleet.drain("decode-0", restart=True) is None
            await asyncio.sleep(5)

    in_virtual_time(scenario)


def test_a_yes_to_one_question_is_none_to_another() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, _):
            order = Scale({Role.DECODE: 0})
            question = (await sim.changes.ask(Asked(order, dry_run=True))).question
            other = await sim.changes.ask(Asked(order, agreed=f"{question}, and more"))
            assert (other.question, other.change) == (question, 0)
            stop = await sim.changes.ask(Asked(Stop(), agreed=question))
            assert (stop.question[:19], sim.stops.is_set()) == ("the deployment ends", False)
            assert (await sim.changes.ask(Asked(order, agreed=question))).change == 1
            await Operator(sim).ended()

    in_virtual_time(scenario)


def test_earlier_changes_and_how_many_lines_are_gone_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "LINES_MAX", 2)

    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            await operator.has_done(DECODES)
            for _ in range(6):
                await operator.has_done(Scale({Role.DECODE: 2}))
                await operator.has_done(DECODES)
            status = sim.changes.status()
            assert status.change is not None
            assert (status.change.number, [each.number for each in status.earlier]) == (13, list(range(4, 13)))
            assert (status.change.lines, status.change.dropped) == (("decode-2#7 is ready", "done"), 1)

    in_virtual_time(scenario)


def test_several_that_are_the_last_ready_ones_are_asked_about_together() -> None:
    async def scenario() -> None:
        async with changing(decode=3, loaded=False) as (sim, operator):
            assert await sim.fleet.drain("decode-0", restart=False) is None
            await asyncio.sleep(5)
            answer = await operator.asks(Scale({Role.DECODE: 1}))
            assert answer.question == "decode-1 and decode-2 are the last decode engines that are ready"
            assert await sim.fleet.drain("decode-0", restart=True) is None
            await asyncio.sleep(5)

    in_virtual_time(scenario)


def test_a_name_is_of_its_model_and_its_role() -> None:
    """Whatever is in the model's name."""
    assert free_name(("chat.large", Role.DECODE), ["chat.large.decode-0"]) == "chat.large.decode-1"
    assert free_name(("", Role.DECODE), ["chat.decode-0", "decode-1"]) == "decode-0"


def test_the_same_again_joins_another_one_is_refused_and_a_third_time_there_is_nothing_to_do() -> None:
    async def scenario() -> None:
        async with changing() as (_, operator):
            first = await operator.asks(DECODES)
            again = await operator.asks(DECODES)
            assert (first.joined, again.joined, again.change) == (False, True, first.change)
            other = await operator.asks(Restart())
            assert "'scale decode=3' is under way (change 1), and changes come one after the other" in other.why_not
            await operator.ended()
            assert (await operator.asks(DECODES)).change == 0

    in_virtual_time(scenario)


def test_two_that_are_asked_at_once_are_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preflight takes its time."""

    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):

            async def slowly(_plan: Plan) -> list[Problem]:
                await asyncio.sleep(1)
                return []

            monkeypatch.setattr(sim.changes, "_preflight", slowly)
            one, other = await asyncio.gather(operator.asks(DECODES), operator.asks(UP))
            assert (one.change, "is under way" in other.why_not) == (1, True)
            await operator.ended()

    in_virtual_time(scenario)


def test_before_the_deployment_was_ready_nothing_but_stop_is_heeded() -> None:
    """Engines that are added while it starts would be waited for, and end it, as its own do."""

    async def scenario() -> None:
        async with changing(loaded=False) as (sim, _):
            plans = resolve_parts(configured(), "simulated")
            looks = time, _nothing, sim.stops.set
            changes = Changes(sim.fleet, sim.registry, configured(), plans, sim.models, *looks)
            for order in (DECODES, Restart()):
                answer = await changes.ask(Asked(order, dry_run=True))
                assert "has not been ready yet, and only `disagg stop` is heeded" in answer.why_not
            assert (await changes.ask(Asked(Stop()))).question
            changes.open()
            assert (await changes.ask(Asked(DECODES, dry_run=True))).lines

    in_virtual_time(scenario)


async def test_a_controller_heeds_orders_once_its_engines_are_ready() -> None:
    steps: list[str] = []

    class Parts:
        """Of a controller."""

        def __init__(self) -> None:
            self.fleet = self.changes = self
            self._notes = NoNotes()
            self._setting = SimpleNamespace(deadlines=SimpleNamespace(start_s=1.0))

        async def until_ready(self, _limit_s: float) -> None:
            steps.append("ready")

        def open(self) -> None:
            steps.append("open")

    await Controller.until_ready(Parts())  # type: ignore[arg-type]
    assert steps == ["ready", "open"]


def test_who_only_wants_to_know_changes_nothing() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            answer = await operator.asks(UP, dry_run=True)
            assert answer.lines == (
                "prefill.replicas: 2 -> 3",
                "decode.replicas: 2 -> 4",
                "prefill-2 is added: 1 CPU",
                "decode-2 is added: 1 CPU",
                "decode-3 is added: 1 CPU",
            )
            assert sim.changes.status().change is None

    in_virtual_time(scenario)


def test_an_engine_that_does_not_start_is_taken_back_and_its_reason_told(monkeypatch: pytest.MonkeyPatch) -> None:
    start = SimulatedNode.start

    async def fails(self: SimulatedNode, spec: HostSpec) -> Ready:
        if spec.engine_id == "decode-2":
            raise StartError("decode-2", "no such model")
        return await start(self, spec)

    async def logs(self: SimulatedNode, lines: int) -> str:
        return "ValueError: what the engine said last\n"

    monkeypatch.setattr(SimulatedNode, "start", fails)
    monkeypatch.setattr(SimulatedNode, "log", logs)

    async def scenario() -> None:
        async with changing() as (_, operator):
            await operator.begins(UP)
            change = await operator.ended()
            assert change.stage is Stage.ROLLED_BACK
            assert "decode-2 did not start, 3 times" in change.why
            assert "no such model" in change.why
            assert "what the engine said last" in change.why
            assert sorted(operator.engines) == ["decode-0", "decode-1", "prefill-0", "prefill-1"]
            assert (await operator.asks(DECODES)).change == 2, "it can be tried again"
            await operator.ended()

    in_virtual_time(scenario)


def test_a_change_that_is_under_way_when_all_ends_ends_too() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            await operator.begins(UP)
            await asyncio.sleep(0.2)
            await sim.changes.close()
            assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("change ")]
            sim.plans = {each.plan.id: each.plan for each in sim.fleet.supervisors}

    in_virtual_time(scenario)
