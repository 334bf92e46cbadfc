"""What a policy is told of engines is what engines did: not how slowly a client reads, nor what another model does."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package

from bench import SECRET, Plain, Reader, bench, request, until, update

from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.coordinator.request import Request
from disagg.plane.engine import LOADED, Leg, LegSink
from disagg.plane.server import PlaneServer
from disagg.process.stub import StubEngine
from disagg.registry.records import EngineRecord, State
from disagg.registry.table import Table
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.observations import Observation, Stepped
from disagg.routing.policies.least_loaded import LeastLoaded
from disagg.routing.router import Router
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model


class Listens(LeastLoaded):
    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def observe(self, seen: Observation) -> None:
        self.seen.append(seen)

    @property
    def steps(self) -> int:
        return sum(isinstance(each, Stepped) for each in self.seen)


async def test_a_client_that_reads_slowly_does_not_make_its_engine_look_slow() -> None:
    listens = Listens()
    async with bench(limits=Limits(), policy=listens, decode=StubEngine(step_s=0.002)) as b:
        await b.answer(request(max_tokens=64))
        assert listens.steps == 1
        reader = Reader()
        answering = asyncio.create_task(b.coordinator.run(request(max_tokens=300), reader))
        await until(lambda: reader.pieces)
        reader.opened = False
        await asyncio.sleep(0.2)
        reader.opened = True
        await answering
        assert listens.steps == 1
        await b.answer(request(max_tokens=64))
        assert listens.steps == 2


class Loads(StubEngine):
    """Reads for a second, and loads 300 tokens from its host's memory for each prompt."""

    def submit(self, leg: Leg, sink: LegSink) -> object:
        return super().submit(leg, cast("LegSink", Loading(sink)))


class Loading:
    def __init__(self, sink: LegSink) -> None:
        self.on_tokens, self.on_stage, self._sink = sink.on_tokens, sink.on_stage, sink

    def on_end(self, reason: str, detail: str, cached_tokens: int, stats: dict[str, float]) -> None:
        stats = {"forward_start": 1.0, "forward_end": 2.0, LOADED: 300}
        self._sink.on_end(reason, detail, cached_tokens, stats)


async def test_what_was_loaded_from_a_hosts_memory_is_counted_in_its_reports_and_is_no_moment_of_the_request() -> None:
    async with bench(limits=Limits(), prefill=Loads()) as b:
        r = request(max_tokens=3)
        await b.answer(r)
        await b.settle()
        assert b.servers["prefill-0"].ledger.reading[0].loaded == 300
        assert LOADED not in r.timeline
        (endpoint,) = b.router.endpoints.of(Role.PREFILL)
        await until(lambda: endpoint.reported.read_loaded == 300)


async def test_vectors_teach_nothing_of_the_model_that_makes_tokens() -> None:
    listens, engine = Listens(), SimulatedEngine(Model(role=Role.EMBEDDING), life="embedding-0#1")
    facts = engine.start()
    server = PlaneServer(engine, facts, 1, SECRET, embeds=True)
    plane = f"127.0.0.1:{await server.start('127.0.0.1')}"
    registry, connections = Table(), Connections(SECRET)
    registry.put(
        EngineRecord(
            id="embedding-0", role=Role.EMBEDDING, state=State.READY, incarnation=1, ranks=facts.ranks, plane=plane
        )
    )
    router = Router(connections, listens)
    await update(connections, registry.view())
    coordinator = Coordinator(router, Limits())
    for number in range(3):
        asks = Request(f"{number:032x}", list(range(100)), {}, 1, Plain(), coordinator._now_s(), embeds=True)
        await coordinator.run(asks, Reader())
        assert asks.embedding
    await until(lambda: all(e.reported.read_prompts == 3 for e in router.endpoints.of(Role.EMBEDDING)))
    assert not listens.seen
    connections.apply(Table().view())
    await asyncio.sleep(0.02)
    server.close()
