"""A frontend before engines that listen on real sockets of this machine, as tests of several folders start one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from scripted import MODEL, until

from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.frontend.app import Frontend
from disagg.frontend.service import Service
from disagg.plane.engine import EngineFacts
from disagg.registry.records import EngineRecord, State
from disagg.registry.table import Table
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.router import Router

SECRET = b"s" * 32
SCORER = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}}


@dataclass
class Front:
    """A frontend with a coordinator and connections of its own."""

    url: str
    service: Service
    coordinator: Coordinator
    router: Router
    connections: Connections
    tokenization: Any

    @property
    def held(self) -> int:
        """Requests, attempts, rooms and places that somebody has not given back."""
        coordinator = self.coordinator
        waiting = len(coordinator.live) + len(coordinator.attempts) + coordinator.waiting
        return waiting + len(coordinator.rooms) + self.router.endpoints.places_taken


def ready_engine(role: Role, number: int, port: int, facts: EngineFacts) -> EngineRecord:
    """The first incarnation of ROLE-NUMBER, whose plane listens at `port`."""
    return EngineRecord(
        id=f"{role}-{number}",
        role=role,
        state=State.READY,
        incarnation=1,
        plane=f"127.0.0.1:{port}",
        bootstrap="127.0.0.1:9" if ROLES[role].has_bootstrap_server else "",
        kv_tokens=facts.kv_tokens,
        request_tokens_max=facts.request_tokens_max,
        requests_max=facts.requests_max,
        page_size=facts.page_size,
    )


@asynccontextmanager
async def fronting(
    registry: Table, limits: Limits, tokenization: Callable[[Service, Connections], Any]
) -> AsyncIterator[Front]:
    """It serves what the registry's engines serve, and is connected to all of them."""
    connections = Connections(SECRET)
    router = Router(connections)
    coordinator = Coordinator(router, limits)
    kinds = {ROLES[record.role].embeds for record in registry.records.values()}
    service = Service(
        model_name=MODEL,
        router=router,
        coordinator=coordinator,
        control=None,
        generates=False in kinds,
        embeds=True in kinds,
    )
    connections.apply(registry.view())
    await until(lambda: not any(connections.is_lost(record.life) for record in registry.records.values()))
    tokens = tokenization(service, connections)
    frontend = Frontend(service, tokens)
    await frontend.start("127.0.0.1", 0)
    try:
        yield Front(f"http://127.0.0.1:{frontend.port}", service, coordinator, router, connections, tokens)
    finally:
        await frontend.stop(0.2)
        connections.apply(Table().view())
        await asyncio.sleep(0.02)
