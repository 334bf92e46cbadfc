"""A frontend follows the registry's records of models: one comes and goes while the others serve, and leaves nothing.

Real: HTTP, the roster, the request plane. Engines are simulated.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import psutil
import pytest
from msgspec.structs import replace
from one_engine import engine_record
from scripted import Answer, exchange, http_request, make_model_folder

from disagg.adapters import Adapter
from disagg.coordinator.limits import Limits
from disagg.errors import StartError
from disagg.frontend import roster as rosters
from disagg.frontend.app import Frontend
from disagg.frontend.http1 import Refusals
from disagg.frontend.key_limits import LimitedKey, Meters
from disagg.frontend.keys import Keys
from disagg.frontend.one_model import OneModel, Ours
from disagg.frontend.own_tokenizer import OwnTokenizer
from disagg.frontend.roster import Roster
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.frontend.whole import AllModels
from disagg.process.body_readers import BodyReaders
from disagg.registry.control import ControlClient
from disagg.registry.memory import MemoryRegistry
from disagg.registry.records import EngineRecord, ModelRecord, ModelState
from disagg.tokenizer.codec import load_codec

SECRET = b"s" * 32
KEY, FREE = "limited-key-0123456789", "free-key-0123456789012"
ROUNDS, WARM_ROUNDS = 20, 4
NONE: Mapping[str, Any] = MappingProxyType({})
THREADS = 4
LEAKED_OBJECTS_MAX = 500  # of all rounds together: what the page remembers of events, and less than one model has


class Scene:
    def __init__(self, registry: MemoryRegistry, folder: Path, plane: EngineRecord) -> None:
        self.registry, self._folder, self._plane = registry, folder, plane
        self.frontend: Frontend
        self.roster: Roster
        self.whole: AllModels
        self._number = 0

    async def comes(self, key: str, state: ModelState = ModelState.SERVING, **spec: Any) -> None:
        """With its engine."""
        self._number += 1
        said = ModelSpec(**{"path": str(self._folder), "name": key, "group": key, **spec})
        record = ModelRecord(key=key, number=self._number, state=state, spec=msgspec.to_builtins(said))
        await self.registry.put_model(record)
        await self.registry.put(replace(self._plane, id=f"{key}.aggregated-0", group=key))

    async def becomes(self, key: str, state: ModelState) -> None:
        await self.registry.put_model(replace(self.registry.models[key], state=state))

    async def goes(self, key: str) -> None:
        await self.becomes(key, ModelState.LEAVING)
        await self.registry.remove(f"{key}.aggregated-0")
        await self.registry.remove_model(key)

    async def get(self, path: str, key: str = "") -> Answer:
        headers = [f"authorization: Bearer {key}"] if key else []
        return await exchange(self.frontend.port, http_request("GET", path, b"", headers))

    async def ask(self, model: str) -> Answer:
        body = json.dumps({"model": model, "prompt": "Hi", "max_tokens": 3, "ignore_eos": True}).encode()
        return await exchange(self.frontend.port, http_request("POST", "/v1/completions", body), 30)

    @property
    def named(self) -> list[str]:
        return [model.name for model in self.frontend._models.all]

    @property
    def here(self) -> list[str]:
        return [each.one.spec.name for each in self.roster._here.values()]

    async def until_named(self, *names: str) -> None:
        async with asyncio.timeout(30):
            while self.named != list(names):
                await asyncio.sleep(0.01)

    async def until_here(self, *names: str) -> None:
        async with asyncio.timeout(30):
            while self.here != list(names):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def scene(
    folder: Path, *names: str, states: Mapping[str, ModelState] = NONE, specs: Mapping[str, Any] = NONE, **options: Any
) -> AsyncIterator[Scene]:
    """`states`: of those that do not serve when the frontend starts. `specs`: what of them is other than of others."""
    async with AsyncExitStack() as stack:
        registry, it = MemoryRegistry(), None
        it = Scene(registry, folder, await engine_record(stack, SECRET, speed=100))
        for name in names:
            await it.comes(name, states.get(name, ModelState.SERVING), **specs.get(name, {}))
        spec = FrontendSpec(
            registry="",
            control="127.0.0.1:9",
            host="127.0.0.1",
            port=0,
            body_limit_bytes=1 << 20,
            number=0,
            stop_s=0.2,
            limits=Limits(no_pair_s=5.0),
        )
        meters = options.get("meters") or Meters()
        it.roster = Roster(
            spec, registry, Ours(SECRET, ControlClient(lambda: spec.control, SECRET), Refusals(), None, meters)
        )
        first, *more = await it.roster.begin()
        it.whole = AllModels([first.service, *(one.service for one in more)])
        pairs = [(one.service, one.tokenization) for one in more]
        it.frontend = Frontend(first.service, first.tokenization, more=pairs, whole=it.whole, **options)
        await it.frontend.start("127.0.0.1", 0)
        it.roster.join(it.frontend, it.whole)
        following = asyncio.create_task(it.roster.follow(lambda: None))
        try:
            yield it
            assert not following.done(), following
        finally:
            await it.frontend.stop(0.2)
            following.cancel()
            await asyncio.wait([following])
            await it.roster.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def no_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process each would be most of the test's time."""

    async def nothing(_readers: BodyReaders) -> None: ...

    monkeypatch.setattr(BodyReaders, "start", nothing)


async def test_it_is_named_from_serving_to_leaving_and_what_runs_ends(folder: Path) -> None:
    def children() -> set[int]:
        return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}

    async with scene(folder, "a") as it:
        assert (await it.ask("a")).status == 200
        before = children()
        await it.comes("b", ModelState.COMING)
        await it.until_here("a", "b")
        assert it.named == ["a"], "it is made ready, and nobody may name it"
        assert [part["model"] for part in it.whole.status(None)["models"]] == ["a", "b"], "operators see it"
        await it.becomes("b", ModelState.SERVING)
        await it.until_named("a", "b")
        assert [each["id"] for each in (await it.get("/v1/models")).json["data"]] == ["a", "b"]
        assert (await it.ask("b")).status == 200
        assert b'disagg_requests_total{model="b",phase="finished"} 1.0' in (await it.get("/metrics")).body
        assert len(children() - before) == 1, "its reader of long bodies"
        await it.becomes("b", ModelState.LEAVING)
        await it.until_named("a")
        refused = await it.ask("b")
        assert (refused.status, refused.json["error"]["code"]) == (404, "model_not_found")
        await it.goes("b")
        await it.until_here("a")
        assert children() == before
        assert b'model="b"' not in (await it.get("/metrics")).body
        assert (await it.ask("a")).status == 200


async def test_a_model_is_closed_once_its_last_request_has_ended(
    folder: Path, no_readers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(folder, "a", "b") as it:
        monkeypatch.setattr(OneModel, "is_idle", property(lambda one: one.spec.name != "b"))
        await it.goes("b")
        await it.until_named("a")
        await asyncio.sleep(0.3)
        assert it.here == ["a", "b"]
        monkeypatch.undo()
        await it.until_here("a")


async def test_of_two_of_one_name_the_older_serves_until_the_newer_is_ready(
    folder: Path, no_readers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_read = threading.Event()
    own_tokens = rosters.own_tokens

    def slowly(spec: FrontendSpec, model: ModelSpec) -> Any:
        if model.group == "b2":
            is_read.wait(20)
        return own_tokens(spec, model)

    monkeypatch.setattr(rosters, "own_tokens", slowly)
    async with scene(folder, "a", "b") as it:
        old = it.frontend._models.find("b")
        await it.comes("b2", name="b")
        await it.becomes("b", ModelState.LEAVING)
        await asyncio.sleep(0.2)
        assert it.frontend._models.find("b") is old
        is_read.set()
        async with asyncio.timeout(20):
            while it.frontend._models.find("b") is old:
                await asyncio.sleep(0.01)
        assert it.named == ["a", "b"]
        await it.goes("b")
        await it.until_here("a", "b")
        assert (await it.ask("b")).status == 200


async def test_one_that_cannot_be_read_is_tried_again_and_the_others_serve(
    folder: Path, no_readers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rosters, "AGAIN_S", 0.05)
    async with scene(folder, "a") as it:
        await it.comes("b", path=str(tmp_path / "later"))
        async with asyncio.timeout(20):
            while "model b cannot be served here, and is tried again" not in caplog.text:
                await asyncio.sleep(0.01)
        assert (await it.ask("a")).status == 200
        make_model_folder(_made(tmp_path / "later"))
        await it.until_named("a", "b")
        await it.comes("c", path=str(tmp_path / "never"))
        await asyncio.sleep(0.1)
        await it.goes("c")
        async with asyncio.timeout(20):
            while it.roster._opening:
                await asyncio.sleep(0.01)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def test_one_that_is_missing_at_the_start_does_not_hold_up_the_others(
    folder: Path, no_readers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rosters, "AGAIN_S", 0.05)
    async with scene(folder, "a", "b", specs={"b": {"path": str(tmp_path / "later")}}) as it:
        assert it.named == ["a"]
        assert (await it.ask("a")).status == 200
        make_model_folder(_made(tmp_path / "later"))
        await it.until_named("a", "b")
    with pytest.raises(Exception, match="never"):
        async with scene(folder, "b", specs={"b": {"path": str(tmp_path / "never")}}):
            pass


async def test_another_run_of_the_deployment_has_other_models_whatever_their_numbers(
    folder: Path, no_readers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(folder, "a", "b") as it:
        record = it.registry.models["b"]
        other = msgspec.to_builtins(ModelSpec(path=str(folder), name="other", group="b"))
        await it.registry.put_model(replace(record, spec=other))
        await it.until_named("a", "other")
        await it.until_here("a", "other")
        assert (await it.ask("b")).status == 404
        assert (await it.ask("other")).status == 200


async def test_the_last_model_stays_while_another_one_is_closing(
    folder: Path, no_readers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(folder, "a", "b") as it:
        monkeypatch.setattr(OneModel, "is_idle", property(lambda one: one.spec.name != "a"))
        await it.goes("a")
        await it.until_named("b")
        await it.goes("b")
        await it.until_named()
        await asyncio.sleep(0.2)
        assert it.here == ["a", "b"]
        monkeypatch.undo()
        await it.until_here("b")
        await it.comes("c")
        await it.until_named("c")
        await it.until_here("c")


async def test_one_that_starts_later_has_those_that_serve_by_then(folder: Path, no_readers: None) -> None:
    states = {"b": ModelState.LEAVING, "c": ModelState.COMING}
    async with scene(folder, "b", "d", "a", "c", states=states) as it:
        assert it.named == ["d", "a"], "in the order in which they came"
        await it.until_here("d", "a", "c")
        await it.becomes("c", ModelState.SERVING)
        await it.until_named("d", "a", "c")
        assert (await it.ask("c")).status == 200


async def test_without_any_model_a_frontend_does_not_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rosters, "BEGIN_S", 0.05)
    with pytest.raises(StartError, match="the registry has no model"):
        async with scene(folder):
            pass


async def test_a_key_sees_the_models_that_it_may_name_also_those_that_come_later(
    folder: Path, no_readers: None
) -> None:
    limited = LimitedKey(key=KEY, name="one", models=("a", "c", "b:sql"))
    async with scene(folder, "a", "b", keys=Keys([KEY, FREE]), meters=Meters([limited])) as it:
        await it.registry.put_adapter(Adapter("b:sql", "/sql"))
        await it.registry.put_adapter(Adapter("b:fr", "/fr"))
        async with asyncio.timeout(10):
            while len(it.frontend._models.find("b").backend.adapters) < 2:
                await asyncio.sleep(0.01)

        async def listed(key: str) -> list[str]:
            return [each["id"] for each in (await it.get("/v1/models", key)).json["data"]]

        assert await listed(FREE) == ["a", "b", "sql", "fr"]
        assert await listed(KEY) == ["a", "sql"]
        for name, status in (("a", 200), ("b", 404), ("b:sql", 200), ("sql", 200), ("fr", 404), ("nobody", 404)):
            answer = await it.get(f"/v1/models/{name}", KEY)
            assert answer.status == status, name
            if status == 404:
                assert answer.json["error"]["message"].endswith("here; there are 'a', 'b:sql'")
        assert (await it.get("/v1/models/b", FREE)).status == 200
        await it.comes("c")
        await it.until_named("a", "b", "c")
        assert await listed(KEY) == ["a", "sql", "c"]


async def _fill_the_executor() -> None:
    """It makes its threads one by one, where none is idle."""
    all_run = threading.Barrier(THREADS)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    await asyncio.gather(*(asyncio.to_thread(all_run.wait, 20) for _ in range(THREADS)))


async def test_nothing_of_models_that_came_and_went_stays(
    folder: Path, no_readers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = load_codec(folder)  # read once, for the test's time
    monkeypatch.setattr(rosters, "own_tokens", lambda _spec, _model: lambda served: OwnTokenizer(codec, served))

    def now() -> dict[str, int]:
        gc.collect()
        return {
            "tasks": len(asyncio.all_tasks()),
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
            "models": sum(type(each) is OneModel for each in gc.get_objects()),
        }

    async def left() -> dict[str, int]:
        """Once connections that their clients have closed are gone, and the task that has closed the last model."""
        await asyncio.sleep(0.1)
        return now()

    await _fill_the_executor()
    async with scene(folder, "a") as it:
        with it.whole.feed.viewer(None) as viewer:
            await viewer.next()
            for number in range(ROUNDS):
                if number == WARM_ROUNDS:
                    before, objects = await left(), Counter(type(each).__name__ for each in gc.get_objects())
                await it.comes("b", ModelState.COMING)
                await it.becomes("b", ModelState.SERVING)
                await it.until_named("a", "b")
                assert (await it.ask("b")).status == 200
                await it.goes("b")
                await it.until_here("a")
            async with asyncio.timeout(20):
                while await left() != before:
                    pass
            more = Counter(type(each).__name__ for each in gc.get_objects()) - objects
            assert more.total() < LEAKED_OBJECTS_MAX, more
            assert [each.service.model_name for each in it.roster._ones] == ["a"]
