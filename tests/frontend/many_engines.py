"""Engines of a large deployment as a frontend knows them, without any: for what is shown of them."""

from __future__ import annotations

import random

from disagg.plane.ledger import Capacity
from disagg.registry.records import EngineRecord, State
from disagg.registry.table import Table
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.endpoints import UNBOUNDED, Endpoint, Engine

RANKS_EACH = 8
KV_TOKENS = 10**6


class ManyEngines(Connections):
    """Their ranks' loads are other ones at each look."""

    def __init__(self, ranks: int) -> None:
        super().__init__(b"")
        self._random, table = random.Random(1), Table()
        for number in range(ranks // RANKS_EACH):
            role = Role.PREFILL if number % 2 else Role.DECODE
            of_all = {"state": State.READY, "incarnation": 1, "ranks": RANKS_EACH, "kv_tokens": KV_TOKENS}
            table.put(EngineRecord(id=f"{role}-{number}", role=role, node=f"10.0.0.{number}", **of_all))
        self.apply(table.view())

    @property
    def engines(self) -> list[Engine]:
        return [self._engine(record, number) for number, record in enumerate(self.records.values())]

    def _engine(self, record: EngineRecord, number: int) -> Engine:
        engine = Engine(record.id, record.life, record.role, number)
        for rank in range(record.ranks):
            endpoint = Endpoint(engine, rank, "", None, Capacity(UNBOUNDED, KV_TOKENS, 1))  # type: ignore[arg-type]
            endpoint.requests = self._random.randrange(64)
            endpoint.load = (endpoint.requests, self._random.randrange(KV_TOKENS))
            engine.endpoints.append(endpoint)
        return engine
