"""llm-d's default of 2026: a prefix-affinity filter, then the least token load, as published, for comparison.

Symbols: P prompt tokens; h(e) of them cached on e; q(e) prompt tokens that wait on e
Chooses: among the ranks with h(e) >= AFFINITY · P, or among all where there are none, and with probability EXPLORE
         among all in any case: the least q(e) (readers), the least KV tokens (decode)
         The filter is left out where its best would wait PENALTY_TOKENS longer than the best of all
Source:  llm-d, prefix-cache-affinity filter and token-load scorer (llm-d #2071)
"""

from __future__ import annotations

from collections.abc import Sequence

from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.routing.endpoints import Endpoint
from disagg.routing.load import Endpoints
from disagg.routing.policies.by_chance import ByChance
from disagg.routing.policies.sides import BySide, Picked
from disagg.routing.view import RoutingView

AFFINITY = 0.8
EXPLORE = 0.01
PENALTY_TOKENS = 32_768  # llm-d says 5 s, which is about that many on its GPUs


class AffinityThenLoad(ByChance):
    reads_prefixes = True

    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked:
        if not ROLES[role].reads_prompts:
            chosen = min(fitting, key=lambda each: (each.load[1], self._random.random()))
            return Picked(chosen, {"kv_tokens": chosen.load[1]})
        held = endpoints.cached(request)
        warm = [each for each in fitting if held.of(each)[1] >= AFFINITY * request.prompt_tokens]
        best = min(fitting, key=self._load)
        chosen = min(warm, key=self._load) if warm and self._random.random() >= EXPLORE else best
        if chosen.queued_tokens - best.queued_tokens > PENALTY_TOKENS:
            chosen = best
        cached = held.of(chosen)[1]
        return Picked(
            chosen, {"warm": len(warm), "queued_tokens": chosen.queued_tokens, "cached_tokens": cached}, cached
        )

    def _load(self, endpoint: Endpoint) -> tuple[int, tuple[int, int], float]:
        return endpoint.queued_tokens, endpoint.load, self._random.random()


class PrefixFilter(BySide):
    def __init__(self) -> None:
        side = AffinityThenLoad()
        super().__init__(side, side)
