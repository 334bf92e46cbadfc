"""LoRA adapters: every engine has one before it is listed, and none serves without those that are."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from scene import SETTING, Receiver, Scene, begin_request, scene

from disagg.adapters import Adapter
from disagg.cluster import adapters
from disagg.config.schema import Deadlines
from disagg.plane import messages as m
from disagg.registry.records import State
from disagg.roles import Role

pytestmark = pytest.mark.usefixtures("quick")

P, D, ALONE = "prefill-0", "decode-0", "aggregated-0"
GIVEN = (Adapter("sql", "/a/sql"), Adapter("fr", "/a/fr", True))
IMPATIENT = dataclasses.replace(SETTING, deadlines=Deadlines(start_s=5.0, drain_s=0.2))


def there(s: Scene) -> list[list[str]]:
    """What each engine has, in the order they were started."""
    return [sorted(node.engine.adapters) for node in s.nodes.values()]


def listed(s: Scene) -> list[str]:
    return sorted(name for name, adapter in s.registry.adapters.items() if not adapter.is_leaving)


async def ended(receiver: Receiver) -> m.LegEnd:
    async with asyncio.timeout(10):
        while receiver.end is None:
            await asyncio.sleep(0.005)
    return receiver.end


async def test_an_engine_has_all_before_it_is_ready_also_one_that_comes_later_or_comes_back() -> None:
    async with scene(Role.PREFILL, Role.DECODE, given=GIVEN) as s:
        assert there(s) == [["fr", "sql"]] * 2
        assert await s.adapters.load("law", "/a/law", False) is None
        assert there(s) == [["fr", "law", "sql"]] * 2
        s.add(Role.DECODE, SETTING)
        await s.until_ready("decode-1")
        await s.nodes[D].die("killed")
        await s.until_ready(D, 2)
        assert there(s) == [["fr", "law", "sql"]] * 3
        assert s.nodes[D].engine.adapters["law"] == "/a/law"


async def test_an_engine_that_cannot_load_one_does_not_serve_and_says_which() -> None:
    async with scene(Role.AGGREGATED) as s:
        s.adapters._wanted["sql"] = GIVEN[0]
        start, node = s.nodes[ALONE].start, s.nodes[ALONE]

        async def start_without_room(spec: object) -> object:
            ready = await start(spec)  # type: ignore[arg-type]
            node.engine.adapter_trouble = "no memory"
            return ready

        node.start = start_without_room  # type: ignore[method-assign, assignment]
        await node.die("killed")
        await s.until(lambda: "no memory" in s.record(ALONE).detail)
        assert "'sql' cannot be loaded from /a/sql" in s.record(ALONE).detail
        assert s.record(ALONE).state is not State.READY
        node.start = start  # type: ignore[method-assign]
        await s.until(lambda: s.record(ALONE).state is State.READY)
        assert there(s) == [["sql"]]


async def test_it_is_listed_once_all_have_it() -> None:
    async with scene(Role.PREFILL, Role.DECODE) as s:
        waits, goes_on = asyncio.Event(), asyncio.Event()

        async def slow(adapter: Adapter) -> None:
            waits.set()
            await goes_on.wait()

        s.nodes[D].engine.load_adapter = slow  # type: ignore[method-assign]
        loading = asyncio.create_task(s.adapters.load("sql", "/a/sql", False))
        await waits.wait()
        assert listed(s) == []
        loading.cancel()  # who asked leaves: what has begun is done
        goes_on.set()
        await s.until(lambda: listed(s) == ["sql"])


async def test_where_one_engine_fails_the_others_give_it_back() -> None:
    async with scene(Role.PREFILL, Role.DECODE, given=GIVEN[:1]) as s:
        s.nodes[D].engine.adapter_trouble = "rank 64 is incompatible"
        said = await s.adapters.load("law", "/a/law", False)
        assert said == "adapter 'law' is loaded nowhere: decode-0: rank 64 is incompatible"
        assert (there(s), listed(s)) == ([["sql"]] * 2, ["sql"])
        s.nodes[D].engine.adapter_trouble = ""
        assert await s.adapters.load("law", "/a/law", False) is None


@pytest.mark.parametrize(
    ("name", "path", "why"),
    [
        ("tiny", "/a", "is the name of the model"),
        ("tiny:x", "/a", "holds ':'"),
        ("", "/a", "must begin with a letter or digit"),
        ("a b", "/a", "must begin with a letter or digit"),
        ("x" * 129, "/a", "must begin with a letter or digit"),
        ("x", "a/b", "from '/' on"),
        ("x", "/a\0", "from '/' on"),
        ("x", "/" + "a" * 5000, "from '/' on"),
        ("sql", "/a/other", "is here already, from /a/sql"),
    ],
)
async def test_what_is_refused_reaches_no_engine(name: str, path: str, why: str) -> None:
    async with scene(Role.AGGREGATED, given=GIVEN[:1]) as s:
        assert why in (await s.adapters.load(name, path, False) or "")
        assert there(s) == [["sql"]]


async def test_there_is_a_bound_to_how_many_there_are_and_how_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "ADAPTERS_MAX", 2)
    monkeypatch.setattr(adapters, "CHANGES_MAX", 3)
    async with scene(Role.AGGREGATED) as s:
        said = await asyncio.gather(*(s.adapters.load(f"a{at}", "/a", False) for at in range(5)))
        assert [each and each.split(";")[0] for each in said] == [
            *(None, None, "2 adapters are here, the most there may be"),
            *("3 changes of adapters wait already",) * 2,
        ]


async def test_unloading_refuses_new_requests_waits_for_those_that_run_and_frees_the_name() -> None:
    async with scene(Role.AGGREGATED, given=GIVEN) as s:
        node, client = s.nodes[ALONE], await s.client(ALONE)
        node.engine._free.clear()  # holds its legs
        running = begin_request(client, "sql")
        await s.until(lambda: s.live(ALONE).others_requests == 1)
        unloading = asyncio.create_task(s.adapters.unload("sql"))
        await s.until(lambda: listed(s) == ["fr"])
        assert "already" in (await s.adapters.unload("sql") or "")
        assert "is here already" in (await s.adapters.load("sql", "/a/new", False) or "")
        await asyncio.sleep(3 * adapters.POLL_S)
        assert there(s) == [["fr", "sql"]]
        node.engine.release()
        assert await unloading is None
        assert ((await ended(running)).reason, there(s), listed(s)) == ("length", [["fr"]], ["fr"])
        refused = await ended(begin_request(client, "sql"))
        assert (refused.reason, "'sql'" in refused.detail) == (m.NO_ADAPTER, True)
        assert (await ended(begin_request(client, "fr"))).reason == "length"
        assert await s.adapters.unload("sql") == "there is no adapter 'sql' here"
        assert await s.adapters.load("sql", "/a/new", False) is None
        assert node.engine.adapters["sql"] == "/a/new"
        client.close()


async def test_unloading_ends_what_runs_too_long() -> None:
    async with scene(Role.AGGREGATED, setting=IMPATIENT, given=GIVEN) as s:
        client = await s.client(ALONE)
        s.nodes[ALONE].engine._free.clear()
        running = [begin_request(client, "sql"), begin_request(client)]
        await s.until(lambda: s.live(ALONE).others_requests == 2)
        assert await s.adapters.unload("sql") is None
        assert (await ended(running[0])).reason == "abort"
        assert running[1].end is None
        client.close()


async def test_what_was_wanted_while_an_engine_came_up_is_there_or_gone_again() -> None:
    """An adapter that another engine refuses, while this one loads it."""
    async with scene(Role.AGGREGATED, given=GIVEN[:1]) as s:
        s.add(Role.AGGREGATED, SETTING)
        await s.until(lambda: bool(s.nodes["aggregated-1"].engine.adapters))
        s.nodes[ALONE].engine.adapter_trouble = "no"
        assert "aggregated-0: no" in (await s.adapters.load("law", "/a/law", False) or "")
        await s.until_ready("aggregated-1")
        assert there(s) == [["sql"], ["sql"]]


async def test_without_model_lora_there_are_none() -> None:
    async with scene(Role.AGGREGATED) as s:
        s.adapters._model = None
        assert "model.lora" in (await s.adapters.load("sql", "/a", False) or "")
