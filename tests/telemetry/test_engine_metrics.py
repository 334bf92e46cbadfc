"""GET /metrics/engines: what engines count themselves, over the plane, as one text that Prometheus reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.errors import LegLost
from disagg.frontend import engine_figures
from disagg.frontend import service as service_module
from disagg.frontend.service import Service
from disagg.plane.client import PlaneClient
from disagg.plane.messages import MetricFamily
from disagg.plane.server import PlaneServer
from disagg.process.stub import StubEngine
from disagg.registry.records import EngineRecord, State
from disagg.registry.table import Table
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.router import Router
from disagg.telemetry.engine_metrics import Told, labels_of, text_of

SECRET = b"s" * 32
HEAD = "# HELP sglang:x What\n# TYPE sglang:x gauge\n"


class Counting(StubEngine):
    def __init__(self) -> None:
        super().__init__()
        self.fails, self.asked = False, 0

    def metrics(self, labels: str) -> list[MetricFamily]:
        self.asked += 1
        if self.fails:
            raise OSError("a file is gone")
        return [MetricFamily(HEAD, f"sglang:x{{{labels}}} 1.0\n")]


def family(name: str, labels: str, value: float) -> MetricFamily:
    head = f"# HELP {name} What\n# TYPE {name} gauge\n"
    return MetricFamily(head, f"{name}{{{labels}}} {value}\n")


def read(text: bytes) -> dict[str, dict[str, float]]:
    """Metric -> engine -> value. A family that comes twice would be refused."""
    found: dict[str, dict[str, float]] = {}
    for each in text_string_to_metric_families(text.decode()):
        assert each.name not in found
        found[each.name] = {sample.labels["engine"]: sample.value for sample in each.samples}
    return found


def test_a_family_is_there_once_with_the_samples_of_all_engines() -> None:
    one, other, silent = (labels_of(f"decode-{n}", "decode", 'a "model"\\') for n in range(3))
    told = [
        Told(one, [family("a", one, 1), family("b", one, 2)]),
        Told(other, [family("b", other, 3)]),
        Told(silent, None),
    ]
    assert read(text_of(told)) == {
        "disagg_engine_metrics": {"decode-0": 1, "decode-1": 1, "decode-2": 0},
        "a": {"decode-0": 1},
        "b": {"decode-0": 2, "decode-1": 3},
    }


def test_the_text_is_bounded_by_whole_engines() -> None:
    labels = [labels_of(f"decode-{n}", "decode", "m") for n in range(3)]
    told = [
        Told(each, [MetricFamily(HEAD, f"sglang:x{{{each}}} 1\n" * size)])
        for each, size in zip(labels, (1, 100, 1), strict=True)
    ]
    assert read(text_of(told, 1000))["disagg_engine_metrics"] == {"decode-0": 1, "decode-1": 0, "decode-2": 1}


@asynccontextmanager
async def connected(engine: StubEngine) -> AsyncIterator[PlaneClient]:
    server = PlaneServer(engine, engine.start(), 1, SECRET)
    address = f"127.0.0.1:{await server.start('127.0.0.1')}"
    client = PlaneClient(address, 1, SECRET, on_lost=lambda _why: None)
    await client.connect()
    try:
        yield client
    finally:
        client.close()
        server.close()


async def test_a_host_tells_its_engines_and_one_that_cannot_be_read_has_none() -> None:
    engine = Counting()
    async with connected(engine) as client:
        assert (await client.metrics('engine="e"'))[0].samples == 'sglang:x{engine="e"} 1.0\n'
        both = await asyncio.gather(*(client.metrics('engine="e"') for _ in range(2)))
        assert both[0] == both[1]
        assert engine.asked == 2  # who asks at the same time shares the answer
        engine.fails = True
        assert await client.metrics("") == []
        assert await client.loads()  # it serves on


class Asked:
    def __init__(self, answer: Sequence[MetricFamily] | Exception) -> None:
        self._answer = answer

    async def metrics(self, labels: str, limit_s: float) -> Sequence[MetricFamily]:
        if isinstance(self._answer, Exception):
            raise self._answer
        return [family("x", labels, 1)]


class Known(Connections):
    def __init__(self, clients: dict[str, Asked]) -> None:
        super().__init__(b"")
        self._asked, table = clients, Table()
        for n in range(4):
            table.put(EngineRecord(id=f"decode-{n}", role=Role.DECODE, state=State.READY, incarnation=1))
        self.apply(table.view())

    @property
    def clients(self) -> Any:
        return self._asked


@pytest.mark.parametrize(("engine", "there"), [(None, {0: 1, 1: 0, 2: 0, 3: 0}), ("decode-0", {0: 1}), ("none", {})])
async def test_one_that_does_not_answer_or_is_not_connected_is_told_as_such(
    engine: str | None, there: dict[int, int]
) -> None:
    known = Known({
        "decode-0#1": Asked([]),
        "decode-1#1": Asked(TimeoutError()),
        "decode-2#1": Asked(LegLost("decode-2", "no connection")),
    })  # fmt: skip
    router = Router(known)
    service = Service(model_name="m", router=router, coordinator=Coordinator(router, Limits()), control=None)
    told = read(text_of(await service.engine_metrics(engine)))
    assert told.get("disagg_engine_metrics", {}) == {f"decode-{n}": value for n, value in there.items()}
    assert ("x" in told) == bool(there)


async def test_what_there_is_no_room_for_is_left_out_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "BYTES_MAX", 100)
    known = Known({f"decode-{n}#1": Asked([]) for n in range(4)})
    router = Router(known)
    service = Service(model_name="m", router=router, coordinator=Coordinator(router, Limits()), control=None)
    told = await service.engine_metrics(None)
    assert [each.families is not None for each in told] == [True, False, False, False]


async def test_engines_are_asked_once_in_a_while_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_figures, "KEPT_S", 0.05)
    asked: list[str | None] = []
    under_way = 0

    class Whole:
        async def engine_metrics(self, engine_id: str | None) -> list[Told]:
            nonlocal under_way
            under_way += 1
            assert under_way == 1
            asked.append(engine_id)
            await asyncio.sleep(0)
            under_way -= 1
            return [] if engine_id == "none" else [Told('engine="e"', [])]

    whole: Any = Whole()
    figures = engine_figures.EngineFigures(whole)
    found = await asyncio.gather(*(figures.text(each) for each in [None, "e"] * 20))
    assert (asked, len(set(found))) == ([None, "e"], 1)
    await figures.text("none")
    assert figures._kept.keys() == {None, "e"}, "nothing of engines that are not there"
    while figures._kept:
        await asyncio.sleep(0.01)
    await figures.text(None)
    assert asked == [None, "e", "none", None]
