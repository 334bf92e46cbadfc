"""Any endpoint that has room, each as likely as the others."""

from __future__ import annotations

from collections.abc import Sequence

from disagg.roles import Role
from disagg.routing.endpoints import Endpoint
from disagg.routing.load import Endpoints
from disagg.routing.policies.by_chance import ByChance
from disagg.routing.policies.sides import BySide, Picked
from disagg.routing.view import RoutingView


class AnyOne(ByChance):
    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked:
        return Picked(self._random.choice(fitting), {"of": len(fitting)})


class AtRandom(BySide):
    def __init__(self) -> None:
        side = AnyOne()
        super().__init__(side, side)
