"""NVIDIA Dynamo's KV-aware cost, as published, for comparison.

Symbols: b block tokens; P the prompt in blocks, rounded up; D(e), H(e) blocks of it that e has on its device, and on
         its host besides; A(e) prompt blocks that wait to be read on e; K(e) KV blocks of requests on e
Chooses: prefill: the least  LOAD_SCALE · (A(e) + P - (DEVICE · D(e) + HOST · H(e)))
         decode:  the least  K(e) + P    (no overlap counts, and no prompt tokens)
         alone:   the least sum of both; ties at random
Source:  ai-dynamo, docs, routing concepts (2026-11), with its default credits and weights
"""

from __future__ import annotations

from collections.abc import Sequence

from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.routing.cached_prompt import NOT_CACHED
from disagg.routing.endpoints import Endpoint
from disagg.routing.load import Endpoints
from disagg.routing.policies.by_chance import ByChance
from disagg.routing.policies.sides import BySide, Picked
from disagg.routing.view import RoutingView

LOAD_SCALE = 1.0
DEVICE, HOST = 1.0, 0.75  # credits


class DynamoCost(ByChance):
    reads_prefixes = True

    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked:
        held = endpoints.cached(request) if ROLES[role].reads_prompts else NOT_CACHED
        costs: dict[Endpoint, float] = {}
        prompt = request.prompt_tokens
        for each in fitting:
            cost = 0.0
            if ROLES[role].reads_prompts:
                device, anywhere = held.of(each)
                credit = DEVICE * device + HOST * (anywhere - device)
                cost += LOAD_SCALE * (each.queued_tokens + prompt - credit)
            if ROLES[role].makes_tokens:
                cost += each.load[1] + prompt
            costs[each] = cost
        least = min(costs.values())
        chosen = self._random.choice([each for each, cost in costs.items() if cost == least])
        cached = held.of(chosen)[1]
        return Picked(chosen, {"cost_tokens": round(least), "cached_tokens": cached}, cached)


class DynamoKv(BySide):
    def __init__(self) -> None:
        side = DynamoCost()
        super().__init__(side, side)
