"""`disagg apply`, `rollback`, `revisions` and `stop`: another configuration, engine by engine, and back again."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

import pytest
from changing import DECODE, PREFILL, apply, changing, configured, in_virtual_time

from disagg.cluster.change import reading
from disagg.cluster.change.difference import as_yaml, differences
from disagg.cluster.change.keeper import Changes
from disagg.cluster.change.reading import read_over
from disagg.cluster.fleet import Fleet
from disagg.errors import ConfigError, StartError
from disagg.host_spec import HostSpec
from disagg.process.news import Ready
from disagg.registry.orders import Apply, Asked, ChangeRole, Rollback, Scale, Stage, Stop
from disagg.roles import Role
from disagg.simulation.node import SimulatedNode

SMALLER: dict[str, Any] = {"decode": {"replicas": 2, "engine": DECODE | {"kv_tokens": 32768}}}
BOTH: dict[str, Any] = SMALLER | {"prefill": {"replicas": 3, "engine": PREFILL | {"chunk_tokens": 256}}}
SMALL_KV = ("decode.engine.kv_tokens: 65536 -> 32768",)


def engine_of(sim: Any, engine_id: str) -> int:
    return int(sim.hosts[engine_id].engine.ranks[0].pool.tokens_total)


def fail(monkeypatch: pytest.MonkeyPatch, *, kv_tokens: int, on: str = "") -> None:
    """Engines with so much KV do not start; `on`: that one alone."""
    start = SimulatedNode.start

    async def fails(self: SimulatedNode, spec: HostSpec) -> Ready:
        if spec.arguments.get("kv_tokens") == kv_tokens and on in ("", spec.engine_id):
            raise StartError(spec.engine_id, "ValueError: not with so little")
        return await start(self, spec)

    monkeypatch.setattr(SimulatedNode, "start", fails)


def test_a_changed_argument_comes_to_every_engine_of_its_pool_and_no_request_fails() -> None:
    async def scenario() -> None:
        async with changing() as (sim, operator):
            seen = await operator.asks(apply(**SMALLER), dry_run=True)
            assert seen.lines == (
                *SMALL_KV,
                "decode-2 stands in meanwhile, and is removed in the end: 1 CPU",
                "start again with other arguments, one after the other: decode-0, decode-1",
            )
            change = await operator.has_done(apply(**SMALLER))
            assert change.lines.index("decode-2#1 is ready") < change.lines.index("decode-0 drains")
            assert sorted(operator.engines.values()) == ["decode-0#2", "decode-1#2", "prefill-0#1", "prefill-1#1"]
            assert [engine_of(sim, f"decode-{n}") for n in range(2)] == [32768, 32768]
            assert (await operator.asks(apply(**SMALLER))).change == 0, "it is so already"

    in_virtual_time(scenario)


def test_without_room_beside_them_they_go_one_by_one_before_they_come() -> None:
    async def scenario() -> None:
        async with changing(room_max=4) as (sim, operator):
            seen = await operator.asks(apply(**SMALLER), dry_run=True)
            assert seen.lines[-1] == "there is no room for another engine meanwhile: they go before they come"
            await operator.has_done(apply(**SMALLER))
            assert sorted(operator.engines.values()) == ["decode-0#2", "decode-1#2", "prefill-0#1", "prefill-1#1"]
            assert sim.places.taken == 4

    in_virtual_time(scenario)


def test_what_is_added_comes_first_and_stands_in() -> None:
    async def scenario() -> None:
        async with changing() as (_, operator):
            change = await operator.has_done(apply(**BOTH))
            assert change.lines[0] == "prefill-2 starts"
            assert not [line for line in change.lines if line.startswith("prefill-3")]
            assert sorted(operator.engines.values()) == [
                *("decode-0#2", "decode-1#2"),
                *("prefill-0#2", "prefill-1#2", "prefill-2#1"),
            ]

    in_virtual_time(scenario)


def test_where_what_is_added_takes_the_last_room_nobody_stands_in() -> None:
    async def scenario() -> None:
        async with changing(room_max=5) as (_, operator):
            seen = await operator.asks(apply(prefill=3, **SMALLER), dry_run=True)
            assert seen.lines[-1] == "there is no room for another engine meanwhile: they go before they come"
            await operator.has_done(apply(prefill=3, **SMALLER))
            assert sorted(operator.engines.values())[:2] == ["decode-0#2", "decode-1#2"]

    in_virtual_time(scenario)


def test_room_that_is_gone_when_one_is_to_stand_in_is_done_without() -> None:
    async def scenario() -> None:
        async with changing(room_max=5) as (sim, operator):
            await operator.begins(apply(**SMALLER))
            sim.places.room_max = 4
            change = await operator.ended()
            assert change.lines[0] == "there is no room for decode-2 to stand in: engines go before they come"
            assert (change.stage, sim.places.taken) == (Stage.DONE, 4)

    in_virtual_time(scenario)


def test_two_do_not_stand_in_where_there_is_room_for_one() -> None:
    """What the second one needs is asked about before anything is touched."""
    pools: dict[str, Any] = {
        "prefill": {"replicas": 1, "engine": PREFILL | {"chunk_tokens": 256}},
        "decode": {"replicas": 1, "engine": DECODE | {"kv_tokens": 32768}},
    }

    async def scenario() -> None:
        async with changing(prefill=1, decode=1, room_max=3, loaded=False) as (_, operator):
            seen = await operator.asks(apply(**pools))
            assert len([line for line in seen.lines if "stands in" in line]) == 1
            assert seen.question.startswith("decode-0 is the only decode engine, and there is no room for another")
            await operator.has_done(apply(**pools), yes=True)
            assert sorted(operator.engines.values()) == ["decode-0#2", "prefill-0#2"]

    in_virtual_time(scenario)


def test_a_pool_of_another_name_follows_place_by_place_on_a_full_cluster() -> None:
    renamed: dict[str, Any] = {"decode": {"name": "large", "replicas": 2, "engine": DECODE}}

    async def scenario() -> None:
        async with changing(room_max=4) as (sim, operator):
            await operator.has_done(apply(**renamed))
            assert sorted(operator.engines) == ["decode-2", "decode-3", "prefill-0", "prefill-1"]
            assert sim.places.taken == 4
        renamed["decode"]["replicas"] = 1
        async with changing(decode=1, room_max=3, loaded=False) as (_, operator):
            assert (
                await operator.asks(apply(**renamed))
            ).question == "decode-0 is the last decode engine that is ready"
            await operator.has_done(apply(**renamed), yes=True)
            assert sorted(operator.engines) == ["decode-1", "prefill-0", "prefill-1"]

    in_virtual_time(scenario)


def test_a_pool_of_another_name_that_does_not_start_costs_one_engine_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail(monkeypatch, kv_tokens=32768)
    renamed = {"decode": {"name": "large", "replicas": 2, "engine": DECODE | {"kv_tokens": 32768}}}

    async def scenario() -> None:
        async with changing(room_max=4) as (_, operator):
            await operator.begins(apply(**renamed))
            change = await operator.ended()
            assert (change.stage, "did not start, 3 times" in change.why) == (Stage.ROLLED_BACK, True)
            assert sorted(operator.engines.values()) == ["decode-0#1", "decode-1#2", "prefill-0#1", "prefill-1#1"]

    in_virtual_time(scenario)


def test_an_engine_of_which_there_are_more_makes_room_first() -> None:
    one, other = ({"name": name, "engine": dict(DECODE)} for name in ("one", "other"))
    after = {"prefill": {"name": "large", "engine": dict(PREFILL)}, "decode": [other]}

    async def scenario() -> None:
        async with changing(prefill=1, decode=[one, other], room_max=3) as (_, operator):
            change = await operator.has_done(apply(**after), yes=True)
            assert [line for line in change.lines if "#" in line or "drains" in line] == [
                "decode-0 drains",
                "prefill-1#1 is ready",
                "prefill-0 drains",
            ]

    in_virtual_time(scenario)


def test_a_pool_of_another_name_must_fit_the_old_one_meanwhile() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (_, operator):
            said = {
                "prefill": {"replicas": 2, "name": "one", "engine": PREFILL | {"page_size": 32}},
                "decode": {"replicas": 2, "name": "other", "engine": DECODE | {"page_size": 32}},
            }
            assert "cannot work together meanwhile" in (await operator.asks(apply(**said))).why_not

    in_virtual_time(scenario)


def test_a_place_that_is_too_small_is_given_back_and_another_asked_for() -> None:
    async def scenario() -> None:
        larger: dict[str, Any] = {"decode": {"replicas": 2, "engine": DECODE, "resources": {"cpus": 2}}}
        async with changing(room_max=4) as (sim, operator):
            await operator.has_done(apply(**larger))
            assert sorted(operator.engines.values()) == ["decode-0#2", "decode-1#2", "prefill-0#1", "prefill-1#1"]
            assert sim.places.taken == 4

    in_virtual_time(scenario)


def test_what_does_not_start_is_seen_on_the_one_that_stands_in_and_nothing_else_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail(monkeypatch, kv_tokens=32768)

    async def scenario() -> None:
        async with changing() as (sim, operator):
            await operator.begins(apply(**SMALLER))
            change = await operator.ended()
            assert change.stage is Stage.ROLLED_BACK
            assert "decode-2 did not start, 3 times: ValueError: not with so little" in change.why
            assert sorted(operator.engines.values()) == ["decode-0#1", "decode-1#1", "prefill-0#1", "prefill-1#1"]
            assert [each.what for each in sim.changes.status().revisions] == ["started"]

    in_virtual_time(scenario)


@pytest.mark.parametrize("room_max", [None, 4])
def test_what_does_not_start_at_the_last_engine_is_taken_back_on_the_others(
    monkeypatch: pytest.MonkeyPatch, room_max: int | None
) -> None:
    fail(monkeypatch, kv_tokens=32768, on="decode-1")

    async def scenario() -> None:
        async with changing(room_max=room_max) as (sim, operator):
            await operator.begins(apply(**SMALLER))
            change = await operator.ended()
            assert change.stage is Stage.ROLLED_BACK
            assert sorted(operator.engines) == ["decode-0", "decode-1", "prefill-0", "prefill-1"]
            assert [engine_of(sim, f"decode-{n}") for n in range(2)] == [65536, 65536]

    in_virtual_time(scenario)


def test_what_cannot_be_taken_back_either_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    start, was_tried = SimulatedNode.start, False

    async def fails(self: SimulatedNode, spec: HostSpec) -> Ready:
        nonlocal was_tried
        if spec.engine_id == "decode-1" and (was_tried or spec.arguments.get("kv_tokens") == 32768):
            was_tried = True
            raise StartError(spec.engine_id, "its node is ill")
        return await start(self, spec)

    async def scenario() -> None:
        async with changing(room_max=4) as (sim, operator):
            monkeypatch.setattr(SimulatedNode, "start", fails)
            await operator.begins(apply(**SMALLER))
            change = await operator.ended()
            assert change.stage is Stage.FAILED
            assert "It could not be taken back: decode-1 did not start, 3 times" in change.why
            monkeypatch.setattr(SimulatedNode, "start", start)
            async with asyncio.timeout(60):
                while not sim.is_whole:  # its supervisor goes on trying
                    await asyncio.sleep(1)
            assert [engine_of(sim, f"decode-{n}") for n in range(2)] == [65536, 65536]


@pytest.mark.parametrize("order", [apply(), Rollback(1)], ids=str)
def test_engines_that_a_failed_change_has_left_are_brought_to_what_is_wanted(
    monkeypatch: pytest.MonkeyPatch, order: Apply | Rollback
) -> None:
    """The stand-in stays, and one that has the new arguments."""
    start, remove = SimulatedNode.start, Fleet.remove

    async def fails(self: SimulatedNode, spec: HostSpec) -> Ready:
        if spec.engine_id == "decode-1" and spec.arguments.get("kv_tokens") == 32768:
            raise StartError(spec.engine_id, "its node is ill")
        return await start(self, spec)

    async def sticks(self: Fleet, engine_id: str) -> None:
        if engine_id == "decode-2":
            raise RuntimeError("Ray is away")
        await remove(self, engine_id)

    async def breaks(self: Fleet, engine_id: str, plan: object) -> None:
        raise RuntimeError("Ray is away")

    async def scenario() -> None:
        async with changing() as (sim, operator):
            with monkeypatch.context() as broken:
                broken.setattr(SimulatedNode, "start", fails)
                broken.setattr(Fleet, "remove", sticks)
                await operator.begins(apply(**SMALLER))
                async with asyncio.timeout(60):
                    while "decode-1" not in operator.engines or operator.engines["decode-1"] == "decode-1#1":
                        await asyncio.sleep(0.1)
                broken.setattr(Fleet, "replace", breaks)
                assert (await operator.ended()).stage is Stage.FAILED
            assert (engine_of(sim, "decode-0"), "decode-2" in operator.engines) == (32768, True)
            refused = await operator.asks(ChangeRole("prefill-1", Role.DECODE))
            assert "rollback --to 1 makes them so" in refused.why_not
            seen = await operator.asks(order, dry_run=True)
            assert seen.lines[-1] == "decode-2 drains, and is removed"
            await operator.has_done(order)
            assert sorted(operator.engines) == ["decode-0", "decode-1", "prefill-0", "prefill-1"]
            assert [engine_of(sim, f"decode-{n}") for n in range(2)] == [65536, 65536]
            assert [each.what for each in sim.changes.status().revisions] == ["started"]
            assert (await operator.asks(order)).change == 0

    in_virtual_time(scenario)


def test_engines_that_a_failed_change_has_left_must_fit_the_next_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            other = DECODE | {"page_size": 32}
            monkeypatch.setattr(
                sim.changes, "_unfinished", configured(decode={"engine": other}, prefill={"engine": other})
            )
            assert "cannot work together meanwhile" in (await operator.asks(apply(**SMALLER))).why_not

    in_virtual_time(scenario)

    in_virtual_time(scenario)


@pytest.mark.parametrize("while_taken_back", [False, True])
def test_an_error_that_nobody_foresaw_ends_the_change_and_no_other(
    monkeypatch: pytest.MonkeyPatch, while_taken_back: bool
) -> None:
    fail(monkeypatch, kv_tokens=32768)

    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):

            async def breaks(*_: object) -> None:
                raise RuntimeError("Ray is away")

            with monkeypatch.context() as broken:
                broken.setattr(sim.fleet, "remove" if while_taken_back else "add_where_room", breaks)
                await operator.begins(apply(**SMALLER))
                change = await operator.ended()
            assert change.stage is Stage.FAILED
            assert change.why.endswith("RuntimeError: Ray is away")
            assert ("decode-2 did not start" in change.why) is while_taken_back
            assert (await operator.asks(Scale({Role.DECODE: 3}))).change == 2
            await operator.ended()
            if "decode-2" in operator.engines:
                await operator.has_done(Scale({Role.DECODE: 2}))

    in_virtual_time(scenario)


def test_what_is_not_of_engines_is_told_and_again_at_the_next_change() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            routing = {"routing": {"policy": "least_loaded"}, "transfer": {"allow_tcp": True}}
            said = "routing.policy: predicted -> least_loaded: takes effect at the next start"
            seen = await operator.asks(apply(**routing), dry_run=True)
            assert seen.lines == ("transfer.allow_tcp: False -> True", said)
            change = await operator.has_done(apply(**routing))
            assert change.lines == ("done",)
            assert [each.what for each in sim.changes.status().revisions] == ["started", "apply changed.yaml"]
            assert said in (await operator.asks(apply(**routing, **SMALLER), dry_run=True)).lines
            assert said in (await operator.asks(Scale({Role.DECODE: 3}), dry_run=True)).lines

    in_virtual_time(scenario)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"model": {"path": "other"}}, "model.path: smollm2 -> other: cannot change while it serves"),
        ({"namespace": "elsewhere"}, "namespace: disagg -> elsewhere: cannot change while it serves"),
        ({"name": "another"}, "name: changing -> another: cannot change while it serves"),
        ({"ray": {"cpus": 3}}, "ray.cpus: None -> 3: cannot change while it serves"),
        (
            {"decode": {"engine": DECODE | {"page_size": 32}}, "prefill": {"engine": PREFILL | {"page_size": 32}}},
            "engines of the old and of the new configuration cannot work together meanwhile",
        ),
        ({"embedding": {}}, "frontends serve tokens, or vectors, as there were engines for them at the start"),
        ({"aggregated": {"engine": {"page_size": 48}}}, "the KV blocks in which engines tell what they have cached"),
        ({"decode": {"engine": {"page_size": 16, "judge": 1}}}, "the simulated engine has no argument 'judge'"),
        ({"decode": {"engine": DECODE | {"page_size": 32}}}, "decode.engine.page_size: is 32 but prefill"),
        ({"frontend": {"port": "x"}}, "frontend.port"),
    ],
    ids=lambda said: "" if isinstance(said, str) else next(iter(said)),
)
def test_what_cannot_be_is_refused(said: dict[str, Any], what: str) -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            assert what in (await operator.asks(apply(**said))).why_not
            assert sim.changes.status().change is None

    in_virtual_time(scenario)


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "text"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (_, operator):
            assert (await operator.asks(Apply(text))).why_not

    in_virtual_time(scenario)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"extends": "simulated"}, "extends: names a file of another machine"),
        ({"model": {"path": "smollm2", "chat_template": "my.jinja"}}, "model.chat_template: is no template"),
        ({"decode": [{"env": {"A": "${env:HOME:-x}"}}]}, "decode.0.env.A: names an environment variable of another"),
        ({"decode": {"env": {"A": "a" * (1 << 20)}}}, "configuration: is over 1 MiB"),
    ],
    ids=lambda said: "" if isinstance(said, str) else next(iter(said)),
)
def test_what_serve_would_read_in_another_way_is_refused(said: dict[str, Any], what: str) -> None:
    """A program sends what it likes."""
    with pytest.raises(ConfigError) as error:
        read_over(apply(**said).config, configured())
    assert [str(problem)[: len(what)] for problem in error.value.problems] == [what]


def test_what_stands_in_itself_is_read_to_its_end() -> None:
    with pytest.raises(ConfigError):
        read_over("a: &a {b: *a, c: '${env:HOME}'}\n", configured())


async def test_a_configuration_is_read_beside_the_controller_s_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    monkeypatch.setattr(reading, "read_over", lambda *_: threads.append(threading.current_thread()))
    await reading.read_apart("", configured())
    assert threads != [threading.main_thread()]
    assert inspect.signature(Changes).parameters["read"].default is reading.read_apart


def test_a_registry_s_password_goes_with_its_user() -> None:
    etcd = {"kind": "etcd", "endpoints": ["127.0.0.1:2379"]}
    now = configured(namespace="kept", registry=etcd | {"user": "u", "password": "secret"})
    for user in ({}, {"user": "u"}):
        registry = read_over(apply(namespace="kept", registry=etcd | user).config, now).registry
        assert (registry.user, registry.password is not None) == (user.get("user"), bool(user))


def test_secrets_stay_and_are_never_shown() -> None:
    metered = {"key": "another-of-sixteen-letters", "name": "team", "concurrent": 3}
    traces = {"endpoint": "http://127.0.0.1:4318"}
    secrets: dict[str, Any] = {
        "security": {"api_keys": ["a-key-of-sixteen-letters", metered], "admin_keys": ["one-of-sixteen-letters"]},
        "telemetry": {"traces": {**traces, "headers": {"x-key": "sixteen"}}},
        "registry": {"kind": "etcd", "endpoints": ["127.0.0.1:2379"], "user": "u", "password": "sixteen"},
    }
    kept: dict[str, Any] = {
        "namespace": "kept",
        "telemetry": {"traces": traces},
        "registry": {name: value for name, value in secrets["registry"].items() if name != "password"},
    }
    env = {"decode": {"replicas": 2, "engine": DECODE, "env": {"HF_TOKEN": "hf_one", "PROXY": "http://u:hf_one@proxy"}}}
    after = {
        "decode": {"replicas": 2, "engine": DECODE, "env": {"HF_TOKEN": "hf_two", "PROXY": "http://u:hf_two@proxy"}}
    }

    async def scenario() -> None:
        async with changing(namespace="kept", **secrets, **env, loaded=False) as (sim, operator):
            before = sim.changes._wanted.deployment
            seen = await operator.asks(apply(**kept, **after), dry_run=True)
            assert seen.lines[:2] == ("decode.env.HF_TOKEN: changes", "decode.env.PROXY: changes")
            await operator.has_done(apply(**kept, **after))
            now = sim.changes._wanted.deployment
            assert now.security == before.security
            assert now.telemetry == before.telemetry
            assert now.registry == before.registry
            for number in (1, 2):
                shown = sim.changes.status(number).revisions[number - 1].config
                assert "kv_tokens: 65536" in shown
                assert not [
                    word for word in ("sixteen", "hf_one", "hf_two", "api_keys", "headers", "***") if word in shown
                ]

    in_virtual_time(scenario)


def test_back_to_an_earlier_revision() -> None:
    async def scenario() -> None:
        async with changing() as (sim, operator):
            await operator.has_done(apply(**SMALLER))
            await operator.has_done(Scale({Role.DECODE: 3}))
            await operator.has_done(Rollback())
            assert (len(operator.engines), engine_of(sim, "decode-0")) == (4, 32768)
            again = await operator.asks(Rollback())
            assert "'rollback' is done already (change 3); to go on from there: rollback --to N" in again.lines
            await operator.has_done(Rollback(1))
            assert engine_of(sim, "decode-0") == 65536
            assert "there is no revision 9; there are 1 to 5" in (await operator.asks(Rollback(9))).why_not
            assert [each.what for each in sim.changes.status().revisions[-2:]] == ["rollback", "rollback --to 1"]

    in_virtual_time(scenario)


def test_there_is_nothing_before_the_first_revision() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (_, operator):
            assert "there is no revision 0; there are 1 to 1" in (await operator.asks(Rollback())).why_not

    in_virtual_time(scenario)


def test_stop_asks_and_then_ends_it_whatever_is_under_way() -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            await operator.begins(apply(**SMALLER))
            assert (await operator.asks(Stop())).question.startswith("the deployment ends")
            assert not sim.stops.is_set()
            assert (await sim.changes.ask(Asked(Stop(), yes=True))).change == 2
            assert sim.stops.is_set()
            assert "the deployment stops" in (await operator.asks(Scale({Role.DECODE: 3}))).why_not
            again = await sim.changes.ask(Asked(Stop(), yes=True))
            assert (again.change, again.joined) == (2, True)
            await sim.changes.close()
            sim.plans = sim.fleet.plans

    in_virtual_time(scenario)


@pytest.mark.parametrize("ends", ["an operator", "the process"])
def test_what_was_looked_at_while_it_ended_is_not_begun(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):

            async def meanwhile(_plan: object) -> tuple[()]:
                if ends == "an operator":
                    await operator.asks(Stop(), yes=True)
                else:
                    await sim.changes.close()
                return ()

            monkeypatch.setattr(sim.changes, "_preflight", meanwhile)
            assert "the deployment stops" in (await operator.asks(Scale({Role.DECODE: 3}))).why_not
            assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("change ")]

    in_virtual_time(scenario)


def test_pools_are_compared_one_by_one_and_what_is_not_said_is_the_default() -> None:
    pools = [{"replicas": 1, "engine": DECODE}, {"replicas": 2, "engine": DECODE, "name": "large"}]
    found = differences(configured(), configured(decode=pools))
    assert {each.path for each in found} >= {"decode.0.replicas", "decode.1.name", "decode.replicas"}
    assert "large" in as_yaml(configured(decode=pools))
    assert "deadlines" not in as_yaml(configured())
