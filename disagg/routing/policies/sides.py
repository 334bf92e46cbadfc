"""What most published policies have in common: each side of a pair is chosen by itself.

Way:   Router.consider -> [BySide.choose] -> a SidePolicy for each side -> Choice
In:    the endpoints of one role that have room; what each is believed to have of the prompt
Out:   an endpoint a side, and what it was chosen by
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from disagg.roles import Role
from disagg.routing.endpoints import Endpoint, Pair
from disagg.routing.load import Endpoints
from disagg.routing.policies.least_loaded import LeastLoaded, best_after
from disagg.routing.view import Choice, Reason, RoutingView


class Picked(NamedTuple):
    endpoint: Endpoint
    went_by: dict[str, Any]  # what decided, for the request's facts
    cached_tokens: int = 0


class SidePolicy(Protocol):
    """Chooses among endpoints of one role. `fitting` is never empty; all of it has room, and is to be preferred
    alike. One that asks what is cached, or for the prompt's path, says `reads_prefixes = True`."""

    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked: ...


class PickedBySide(Reason, frozen=True):
    """What each side went by; `reader`: prefill's, or that of an engine that serves alone."""

    policy: str
    reader: dict[str, Any]
    decode: dict[str, Any] | None = None


class LeastOfSide:
    """The least loaded endpoint: by requests, then by KV tokens."""

    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked:
        endpoint = min(fitting, key=lambda each: each.load)
        return Picked(endpoint, {"requests": endpoint.load[0], "kv_tokens": endpoint.load[1]})


class BySide:
    """A pair, or an aggregated engine where there are any with room. A policy of one's own that chooses each side by
    itself derives from this, with one SidePolicy for all sides or one for each. `reads_prefixes`: some side asks what
    is cached."""

    def __init__(
        self,
        prefill: SidePolicy | None = None,
        decode: SidePolicy | None = None,
        aggregated: SidePolicy | None = None,
    ) -> None:
        by_load = LeastOfSide()
        self.of_side: dict[Role, SidePolicy] = {
            Role.PREFILL: prefill or by_load,
            Role.DECODE: decode or by_load,
            Role.AGGREGATED: aggregated or prefill or by_load,
        }
        self.reads_prefixes = any(getattr(side, "reads_prefixes", False) for side in self.of_side.values())
        self._least_loaded = LeastLoaded()

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        if request.embeds:
            return self._least_loaded.choose(request, endpoints)
        if request.prefix_on is not None and (choice := best_after(request.prefix_on, request, endpoints)) is not None:
            return choice
        return self._alone(request, endpoints) or self._pair(request, endpoints)

    def observe(self, observation: Any) -> None:
        for side in {id(side): side for side in self.of_side.values()}.values():
            if hasattr(side, "observe"):
                side.observe(observation)

    def settle(self, surroundings: Any) -> None:
        for side in {id(side): side for side in self.of_side.values()}.values():
            if hasattr(side, "settle"):
                side.settle(surroundings)

    def _alone(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        fitting = preferred(Role.AGGREGATED, request, endpoints)
        if not fitting:
            return None
        picked = self.of_side[Role.AGGREGATED].pick(Role.AGGREGATED, request, fitting, endpoints)
        reason = PickedBySide(type(self).__name__, picked.went_by)
        return Choice(Pair(None, picked.endpoint), reason, picked.cached_tokens)

    def _pair(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        """Prefill first, of those that have met a decode with room; then a decode that it has met."""
        decodes = preferred(Role.DECODE, request, endpoints)
        met = set().union(*map(endpoints.peers_of, {each.life: each for each in decodes}.values())) if decodes else ()
        prefills = [each for each in preferred(Role.PREFILL, request, endpoints) if each.life in met]
        if not prefills:
            return None
        prefill = self.of_side[Role.PREFILL].pick(Role.PREFILL, request, prefills, endpoints)
        decodes = [each for each in decodes if prefill.endpoint.life in endpoints.peers_of(each)]
        decode = self.of_side[Role.DECODE].pick(Role.DECODE, request, decodes, endpoints)
        reason = PickedBySide(type(self).__name__, prefill.went_by, decode.went_by)
        return Choice(Pair(prefill.endpoint, decode.endpoint), reason, prefill.cached_tokens)


def preferred(role: Role, request: RoutingView, endpoints: Endpoints) -> list[Endpoint]:
    """Those with room, least loaded first; without those that the request would rather avoid, unless there are no
    others."""
    fitting = list(endpoints.fitting(role, request))
    good = [endpoint for score, endpoint in fitting if not score[0]]
    return good or [endpoint for _, endpoint in fitting]
