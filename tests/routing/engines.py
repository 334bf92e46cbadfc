"""Endpoints without sockets, for the tests of this folder."""

from __future__ import annotations

from itertools import product
from typing import Any

from disagg.plane.ledger import Capacity
from disagg.registry.met import Met
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.endpoints import UNBOUNDED, Endpoint, Engine
from disagg.routing.policy import Policy
from disagg.routing.reservation import Reservation
from disagg.routing.router import Router
from disagg.routing.view import RoutingView

ROOMY = Capacity(UNBOUNDED, UNBOUNDED, 1)


class Client:
    """Stands in for a plane connection; counts how often routing looks at it."""

    def __init__(self) -> None:
        self.is_up = True
        self.looks = 0

    @property
    def is_open(self) -> bool:
        self.looks += 1
        return self.is_up


def make_engine(life: str, role: Role, number: int, ranks: int = 1, capacity: Capacity = ROOMY) -> Engine:
    client: Any = Client()
    engine = Engine(life.split("#")[0], life, role, number)
    engine.endpoints = [Endpoint(engine, rank, "", client, capacity) for rank in range(ranks)]
    return engine


class PickingRouter(Router):
    """Gives places without a queue."""

    def pick(self, request: RoutingView) -> Reservation | None:
        """Counted as taken until it is released; None while nothing has room."""
        choice = self.consider(request)
        return None if choice is None else self.endpoints.reserve(choice, request)


def make_router(*engines: Engine, policy: Policy | None = None, met: Met | None = None) -> PickingRouter:
    """All have met, unless `met` says otherwise."""
    router = PickingRouter(Connections(b"s" * 32), policy)
    for engine in engines:
        router.endpoints.add(engine)
    prefills, decodes = ([e.life for e in engines if e.role is role] for role in (Role.PREFILL, Role.DECODE))
    router.endpoints.meet(Met(product(prefills, decodes)) if met is None else met)
    return router


def split(prefills: int, decodes: int, ranks: int = 1, capacity: Capacity = ROOMY) -> list[Engine]:
    return [make_engine(f"prefill-{n}#1", Role.PREFILL, n, ranks, capacity) for n in range(prefills)] + [
        make_engine(f"decode-{n}#1", Role.DECODE, prefills + n, ranks, capacity) for n in range(decodes)
    ]


def asked(prompt_tokens: int = 10, new_tokens: int = 5, **more: Any) -> RoutingView:
    return RoutingView(prompt_tokens=prompt_tokens, new_tokens=new_tokens, **more)
