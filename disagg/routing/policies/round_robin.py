"""Each endpoint in turn, by the number of its engine and its dp rank. It knows no load."""

from __future__ import annotations

from collections.abc import Sequence

from disagg.roles import Role
from disagg.routing.endpoints import Endpoint
from disagg.routing.load import Endpoints
from disagg.routing.policies.sides import BySide, Picked
from disagg.routing.view import RoutingView


class InTurn:
    def __init__(self) -> None:
        self._last: dict[Role, tuple[int, int]] = {}

    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked:
        last = self._last.get(role, (-1, -1))
        places = {(each.engine.number, each.dp_rank): each for each in fitting}
        at = min((place for place in places if place > last), default=None) or min(places)
        self._last[role] = at
        return Picked(places[at], {"turn_of": places[at].name})


class RoundRobin(BySide):
    def __init__(self) -> None:
        side = InTurn()
        super().__init__(side, side)
