"""Any endpoint that has room, each as likely as the others."""

from __future__ import annotations

import random
from collections.abc import Sequence

from disagg.roles import Role
from disagg.routing.endpoints import Endpoint
from disagg.routing.load import Endpoints
from disagg.routing.policies.sides import BySide, Picked
from disagg.routing.policy import Surroundings
from disagg.routing.view import RoutingView


class AnyOne:
    def __init__(self) -> None:
        self._random = random.Random()

    def settle(self, surroundings: Surroundings) -> None:
        self._random = surroundings.random

    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked:
        return Picked(self._random.choice(fitting), {"of": len(fitting)})


class AtRandom(BySide):
    def __init__(self) -> None:
        side = AnyOne()
        super().__init__(side, side)
