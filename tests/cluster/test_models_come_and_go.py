"""Changes of a deployment of several models: one comes, or goes, or changes, and no request of the others fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import yaml
from changing import DECODE, PREFILL, Operator, in_virtual_time

from disagg.cluster.change.difference import Effect, as_yaml, differences
from disagg.cluster.change.wanted import Refused, duty_called
from disagg.config.schema import Deployment
from disagg.errors import StartError
from disagg.host_spec import HostSpec
from disagg.load import parse_config
from disagg.planning.plan import Plan
from disagg.process.news import Ready
from disagg.registry.orders import Apply, ChangeRole, Restart, Rollback, Scale, Stage
from disagg.registry.records import EngineRecord, ModelState, State
from disagg.roles import Role
from disagg.simulated_engine.tokens import answer
from disagg.simulation.node import SimulatedNode
from disagg.simulation.world import SimulatedDeployment, Stream

GAP_S = 0.2  # between two requests of a model
PAIR = {"path": "a", "prefill": {"engine": PREFILL}, "decode": {"replicas": 2, "engine": DECODE}}
ALONE = {"path": "b", "aggregated": {"engine": DECODE}}
THIRD = {"path": "c", "aggregated": {"engine": DECODE}}


def text(**models: Any) -> str:
    said = {"version": 1, "name": "several", "device": "simulated", "models": models}
    return yaml.safe_dump(said, sort_keys=False)


def configured(**models: Any) -> Deployment:
    return parse_config(text(**models))


def apply(**models: Any) -> Apply:
    return Apply(text(**models), "several.yaml")


class Load:
    """Of every model that may be named: all answers must be whole."""

    def __init__(self, sim: SimulatedDeployment) -> None:
        self._sim = sim
        self.streams: dict[str, list[Stream]] = {}
        self._task = asyncio.create_task(self._run(), name="load")

    async def _run(self) -> None:
        while True:
            for key in sorted(self._sim.of_several[0].named):
                self.streams.setdefault(key, []).append(self._sim.open([7, *range(100)], 40, model=key))
            await asyncio.sleep(GAP_S)

    async def end(self) -> None:
        self._task.cancel()
        for streams in self.streams.values():
            for stream in streams:
                assert await stream.rest() == answer([7, *range(100)], 40, ignore_eos=True)


@asynccontextmanager
async def several(**models: Any) -> AsyncIterator[tuple[SimulatedDeployment, Operator, Load]]:
    async with SimulatedDeployment(seed=1, deployment=configured(**models or {"a": PAIR, "b": ALONE})) as sim:
        load = Load(sim)
        yield sim, Operator(sim), load
        await load.end()
        await sim.settle()
        assert sim.places.taken == len(sim.plans)


def refuse(monkeypatch: pytest.MonkeyPatch, engine_id: str) -> None:
    start = SimulatedNode.start

    async def fails(self: SimulatedNode, spec: HostSpec) -> Ready:
        if spec.engine_id == engine_id:
            raise StartError(spec.engine_id, "OSError: no weights there")
        return await start(self, spec)

    monkeypatch.setattr(SimulatedNode, "start", fails)


def test_a_model_that_comes_is_named_when_its_engines_are_ready_and_not_before() -> None:
    async def scenario() -> None:
        async with several() as (sim, operator, load):
            seen: list[tuple[str, bool]] = []

            def look(record: EngineRecord) -> None:
                if record.group == "c":
                    model = sim.registry.models["c"]
                    seen.append((record.state.value, model.state is ModelState.SERVING))

            sim.registry.on_put = look
            order = apply(a=PAIR, b=ALONE, c=THIRD)
            answer = await operator.asks(order, dry_run=True)
            assert answer.lines == (
                "models.c: (absent) -> c",
                "model c comes, and is served once its engines are ready",
                "c.aggregated-0 is added: 1 CPU",
            )
            assert not answer.question
            change = await operator.has_done(order)
            assert change.lines == ("c.aggregated-0 starts", "c.aggregated-0#1 is ready", "model c is served", "done")
            assert ("ready", False) in seen
            assert not any(is_named for state, is_named in seen if state != "ready")
            await asyncio.sleep(1)
            assert load.streams["c"]
            assert (await operator.asks(order)).change == 0, "it is so already"
            assert sim.changes.status(2).revisions[-1].config.startswith("version: 1\n")

    in_virtual_time(scenario)


def test_a_model_that_goes_is_asked_about_refused_from_then_on_and_what_runs_ends() -> None:
    async def scenario() -> None:
        async with several() as (sim, operator, load):
            order = apply(a=PAIR)
            seen = await operator.asks(order)
            assert seen.question == "the model b is served no longer, and who asks for it is refused"
            await asyncio.sleep(1)
            change = await operator.has_done(order, yes=True)
            assert change.lines == (
                "model b takes no new requests",
                "b.aggregated-0 drains",
                "b.aggregated-0 is removed",
                "done",
            )
            assert sorted(operator.engines) == ["a.decode-0", "a.decode-1", "a.prefill-0"]
            assert list(sim.registry.models) == list(sim.of_several[0].parts) == ["a"]
            assert load.streams["b"]
            first = sim.registry.models["a"].number
            await operator.has_done(Rollback(1))
            assert operator.engines["b.aggregated-0"] == "b.aggregated-0#2", "no life comes twice"
            assert sim.registry.models["b"].state is ModelState.SERVING
            assert sim.registry.models["b"].number == first + 2, "another coming"

    in_virtual_time(scenario)


def test_one_takes_the_name_of_another_and_nobody_is_refused() -> None:
    async def scenario() -> None:
        async with several() as (sim, operator, _):
            other = apply(a=PAIR, b2={**ALONE, "path": "newer", "name": "b"})
            assert not (await operator.asks(other, dry_run=True)).question, "the name is served all the time"
            named: list[list[str]] = []
            watching = asyncio.create_task(_names(sim, named))
            await operator.has_done(other)
            watching.cancel()
            assert ["b"] in named
            assert all(each.count("b") == 1 for each in named), named

    in_virtual_time(scenario)


async def _names(sim: SimulatedDeployment, named: list[list[str]]) -> None:
    async for _ in sim.registry.watch():
        served = [r.spec["name"] for r in sim.registry.models.values() if r.state is ModelState.SERVING]
        named.append([name for name in served if name != "a"])


def test_a_model_that_does_not_start_is_taken_back_and_was_never_named(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "c.aggregated-0")

    async def scenario() -> None:
        async with several() as (sim, operator, load):
            await operator.begins(apply(a=PAIR, b=ALONE, c=THIRD))
            change = await operator.ended()
            assert change.stage is Stage.ROLLED_BACK
            assert "c.aggregated-0 did not start, 3 times: OSError: no weights there" in change.why
            assert "model c takes no new requests" not in change.lines, "it never took any"
            assert list(sim.registry.models) == ["a", "b"]
            assert "c" not in load.streams
            assert sorted(sim.fleet.plans) == sorted(sim.plans)
            assert "c" not in sim.models._of_models

    in_virtual_time(scenario)


def test_a_model_that_went_comes_back_where_another_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for one of the two: the old one goes first."""
    refuse(monkeypatch, "c.aggregated-0")

    async def scenario() -> None:
        async with several() as (sim, operator, _):
            sim.places.room_max = 4
            await operator.begins(apply(a=PAIR, c=THIRD), yes=True)
            change = await operator.ended()
            assert (change.stage, "model b takes no new requests" in change.lines) == (Stage.ROLLED_BACK, True)
            assert {key: each.state.value for key, each in sim.registry.models.items()} == dict.fromkeys(
                "ab", "serving"
            )
            assert operator.engines["b.aggregated-0"] == "b.aggregated-0#2"

    in_virtual_time(scenario)


def test_where_files_of_a_model_are_not_there_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_plan: Plan) -> Any:
        raise StartError("model.path c", "is no folder here", "give another one")

    async def scenario() -> None:
        async with several() as (sim, operator, _):
            monkeypatch.setattr(sim.models, "_learn", fails)
            await operator.begins(apply(a=PAIR, b=ALONE, c=THIRD))
            change = await operator.ended()
            assert (change.stage, change.why) == (Stage.ROLLED_BACK, "is no folder here; give another one")
            with pytest.raises(StartError):
                await sim.models.folder_of(_plan_of("c"))
            assert await sim.models.folder_of(_plan_of("a")) == ""

    in_virtual_time(scenario)


def _plan_of(key: str) -> Plan:
    (part,) = configured(**{key: THIRD}).parts()
    return Plan(part, "simulated", ())


def test_each_models_engines_are_scaled_restarted_and_moved_by_their_names() -> None:
    async def scenario() -> None:
        async with several() as (sim, operator, _):
            for name, why in (
                ("prefill", "'prefill' names no model's engines here; say a.prefill, b.prefill"),
                ("d.prefill", "'d.prefill' names no model's engines here"),
                ("a.nothing", "'a.nothing' is no role; say one of a.prefill, a.decode"),
                ("b.decode", "b has no decode engines, and what they should be is not known"),
            ):
                assert why in (await operator.asks(Scale({name: 3}))).why_not
            seen = await operator.asks(Scale({"a.prefill": 2, "b.aggregated": 2}), dry_run=True)
            assert seen.lines[:2] == ("models.a.prefill.replicas: 1 -> 2", "models.b.aggregated.replicas: 1 -> 2")
            await operator.has_done(Scale({"a.prefill": 2, "b.aggregated": 2}))
            await operator.has_done(Restart(("b", "a.prefill")))
            restarted = {engine_id for engine_id, life in operator.engines.items() if life.endswith("#2")}
            assert restarted == {"b.aggregated-0", "b.aggregated-1", "a.prefill-0", "a.prefill-1"}
            assert "there is no role or engine 'c.prefill'" in (await operator.asks(Restart(("c.prefill",)))).why_not
            await operator.has_done(ChangeRole("a.decode-1", Role.PREFILL))
            assert operator.engines["a.prefill-2"] == "a.prefill-2#1"
            asked = await operator.asks(Scale({"b.aggregated": 0}))
            assert asked.question.startswith("no aggregated engine of b is left then")
            await operator.has_done(Rollback(1))
            assert sorted(operator.engines) == ["a.decode-0", "a.decode-1", "a.prefill-0", "b.aggregated-0"]
            assert [each.what for each in sim.changes.status().revisions] == [
                "started",
                "scale a.prefill=2 b.aggregated=2",
                "role a.decode-1 prefill",
                "rollback --to 1",
            ]

    in_virtual_time(scenario)


def test_an_argument_of_one_model_leaves_the_other_alone() -> None:
    smaller = {**PAIR, "decode": {"replicas": 2, "engine": DECODE | {"kv_tokens": 32768}}}

    async def scenario() -> None:
        async with several() as (_, operator, _load):
            await operator.has_done(apply(a=smaller, b=ALONE))
            assert operator.engines["a.decode-0"] == "a.decode-0#2"
            assert operator.engines["b.aggregated-0"] == "b.aggregated-0#1"

    in_virtual_time(scenario)


@pytest.mark.parametrize(
    ("models", "why"),
    [
        ({"a": PAIR, "b": {**ALONE, "path": "c"}}, "models.b.path: b -> c: would be another model; say it under"),
        ({"a": PAIR, "b": {**ALONE, "name": "c"}}, "models.b.name: b -> c: would be another model"),
        ({"a": PAIR, "b": {**ALONE, "embedding": {}}}, "frontends serve tokens, or vectors, as there were engines"),
        (
            {
                "a": {
                    **PAIR,
                    "prefill": {"engine": PREFILL | {"page_size": 32}},
                    "decode": {"engine": DECODE | {"page_size": 32}},
                },
                "b": ALONE,
            },
            "engines of the old and of the new configuration cannot work together",
        ),
    ],
    ids=["path", "name", "vectors", "page size"],
)
def test_what_would_be_another_model_or_another_deployment_is_refused(models: dict[str, Any], why: str) -> None:
    async def scenario() -> None:
        async with several() as (_, operator, _load):
            assert why in (await operator.asks(apply(**models))).why_not

    in_virtual_time(scenario)


def test_one_spelling_does_not_become_the_other() -> None:
    async def scenario() -> None:
        async with several() as (_, operator, _load):
            one = {"version": 1, "name": "several", "device": "simulated", "model": {"path": "a"}, "aggregated": {}}
            refused = (await operator.asks(Apply(yaml.safe_dump(one)))).why_not
            assert refused.startswith("it was started with `models`, in which others may come, and this has `model`")
            said = {**one, "model": {"path": "a"}}
            async with SimulatedDeployment(seed=2, deployment=parse_config(yaml.safe_dump(said))) as single:
                refused = (await Operator(single).asks(apply(a=PAIR))).why_not
                assert refused.startswith("it was started with `model`, which is the spelling of one")

    in_virtual_time(scenario)


def test_a_model_more_or_less_is_one_difference_and_the_rest_go_by_their_fields() -> None:
    before, after = configured(a=PAIR, b=ALONE), configured(a={**PAIR, "tool_call_parser": "hermes"}, c=THIRD)
    found = {each.path: each.effect for each in differences(before, after)}
    assert found == {
        "models.a.tool_call_parser": Effect.NEXT_START,
        "models.b": Effect.ENGINES,
        "models.c": Effect.ENGINES,
    }
    scaled = configured(a={**PAIR, "decode": {"replicas": 3, "engine": DECODE, "env": {"X": "secret"}}}, b=ALONE)
    found_texts = [str(each) for each in differences(before, scaled)]
    assert found_texts == ["models.a.decode.replicas: 2 -> 3", "models.a.decode.env.X: changes"]
    assert "secret" not in as_yaml(scaled)
    assert parse_config(as_yaml(before)).models == before.models
    with pytest.raises(Refused):
        duty_called(before, "x")


def test_what_runs_with_a_model_that_goes_has_its_time_and_not_more() -> None:
    async def scenario() -> None:
        async with SimulatedDeployment(seed=3, deployment=configured(a=PAIR, b=ALONE)) as sim:
            operator = Operator(sim)
            endless = sim.open([1, 2, 3], 4_000, model="b")
            await endless.until_tokens(1)
            change = await operator.has_done(apply(a=PAIR), yes=True)
            assert "requests of model b still run, and are ended" in change.lines
            await asyncio.sleep(30)
            assert endless.error is not None
            assert list(sim.of_several[0].parts) == ["a"]
            assert [r.id for r in sim.registry.records.values() if r.state is not State.READY] == []

    in_virtual_time(scenario)
