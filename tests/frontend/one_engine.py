"""A simulated engine behind a real request plane, and its record, for tests of frontends that follow a registry."""

from __future__ import annotations

from contextlib import AsyncExitStack

from disagg.plane.server import PlaneServer
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model


async def engine_record(stack: AsyncExitStack, secret: bytes, *, speed: float = 1) -> EngineRecord:
    engine = SimulatedEngine(Model(role=Role.AGGREGATED, speed=speed), life="aggregated-0#1")
    facts = engine.start()
    server = PlaneServer(engine, facts, 1, secret)
    plane = f"127.0.0.1:{await server.start('127.0.0.1')}"
    stack.callback(engine.stop)
    stack.callback(server.close)
    await engine.open()
    return EngineRecord(
        id="aggregated-0",
        role=Role.AGGREGATED,
        state=State.READY,
        incarnation=1,
        plane=plane,
        ranks=facts.ranks,
        kv_tokens=facts.kv_tokens,
        requests_max=facts.requests_max,
        request_tokens_max=facts.request_tokens_max,
        page_size=facts.page_size,
        context_length=facts.context_length,
    )
