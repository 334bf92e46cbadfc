"""Of two endpoints at random the less loaded one: by requests, then by KV tokens.

Source: M. Mitzenmacher, "The power of two choices in randomized load balancing", 2001
"""

from __future__ import annotations

from collections.abc import Sequence

from disagg.roles import Role
from disagg.routing.endpoints import Endpoint
from disagg.routing.load import Endpoints
from disagg.routing.policies.by_chance import ByChance
from disagg.routing.policies.sides import BySide, Picked
from disagg.routing.view import RoutingView


class BetterOfTwo(ByChance):
    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked:
        drawn = self._random.sample(fitting, min(2, len(fitting)))
        better = min(drawn, key=lambda each: each.load)
        return Picked(better, {"drawn": {each.name: each.load[0] for each in drawn}})


class PowerOfTwo(BySide):
    def __init__(self) -> None:
        side = BetterOfTwo()
        super().__init__(side, side)
