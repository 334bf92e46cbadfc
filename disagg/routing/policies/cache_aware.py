"""cache_aware of SGLang's model gateway (smg), as published, for comparison.

Symbols: n(e) requests on e; m(e) the share of the prompt that e has; c(e) tokens in the cache of e
Chooses: where max n - min n > BALANCE_ABS and max n > BALANCE_REL · min n: the least n(e). Else, where max m >
         CACHE_THRESHOLD: the greatest m(e). Else: the least c(e)
         Prefill, and engines that serve alone. Decode: of two at random the less loaded one, smg's default
Source:  lightseek smg, router arguments and cache_aware policy (1.13), with its defaults
"""

from __future__ import annotations

from collections.abc import Sequence

from disagg.roles import Role
from disagg.routing.endpoints import Endpoint
from disagg.routing.load import Endpoints
from disagg.routing.policies.power_of_two import BetterOfTwo
from disagg.routing.policies.sides import BySide, Picked
from disagg.routing.view import RoutingView

CACHE_THRESHOLD = 0.3
BALANCE_ABS, BALANCE_REL = 64, 1.5


class CacheOrBalance:
    reads_prefixes = True

    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked:
        held = endpoints.cached(request)
        loads = [each.load[0] for each in fitting]
        cached = {each: held.of(each)[1] for each in fitting}
        most, least = max(loads), min(loads)
        if most - least > BALANCE_ABS and most > BALANCE_REL * least:
            chosen, why = min(fitting, key=lambda each: each.load), "balance"
        elif max(cached.values()) > CACHE_THRESHOLD * request.prompt_tokens:
            chosen, why = max(fitting, key=lambda each: (cached[each], [-load for load in each.load])), "cache"
        else:
            chosen, why = min(fitting, key=lambda each: (endpoints.cached_tokens(each), each.load)), "least cached"
        return Picked(chosen, {"by": why, "cached_tokens": cached[chosen]}, cached[chosen])


class CacheAware(BySide):
    def __init__(self) -> None:
        reader = CacheOrBalance()
        super().__init__(reader, BetterOfTwo(), reader)
