"""What admission asks: a reservation for this request, now, or None.

Way:   admission -> [Router.pick] -> policy -> Endpoints.reserve -> Reservation -> Attempt
Owns:  nothing but the policy, which is about tokens: where a vector is made LeastLoaded chooses. It awaits nothing, so
       no decision is half made
Fails: a policy that raises, or chooses what may not be taken, costs the request nothing: LeastLoaded chooses instead,
       which is logged once for each kind of error, and told in the request's facts
"""

from __future__ import annotations

import logging

from disagg.routing.connections import Connections
from disagg.routing.observations import Observation
from disagg.routing.policies.least_loaded import LeastLoaded
from disagg.routing.policy import Learns, Policy
from disagg.routing.reservation import Reservation
from disagg.routing.view import Choice, Reason, RoutingView

log = logging.getLogger(__name__)


class PolicyFailed(Reason, frozen=True):
    """LeastLoaded chose in its place."""

    policy: str
    why: str


class Router:
    """`connections`: to all engines of the registry; `endpoints`: of those that may be chosen now."""

    def __init__(self, connections: Connections, policy: Policy | None = None) -> None:
        self.connections, self.endpoints = connections, connections.endpoints
        self._policy = policy or LeastLoaded()
        self._least_loaded = LeastLoaded()
        self._failures: set[str] = set()  # that the log has
        self.reads_prefixes = bool(getattr(self._policy, "reads_prefixes", False))
        self.learns = isinstance(self._policy, Learns)
        self.endpoints.on_observation = self.observe

    def pick(self, request: RoutingView) -> Reservation | None:
        """Counted as taken until it is released; None while nothing has room."""
        endpoints = self.endpoints
        try:
            choice = (self._least_loaded if request.embeds else self._policy).choose(request, endpoints)
            if choice is not None and not endpoints.is_free_for(choice.pair, request):
                raise ValueError(f"{choice.pair.name} is not free")
        except Exception as error:  # noqa: BLE001 - somebody else's code, called while frames of other requests are handed out
            choice = self._instead(request, error)
        return None if choice is None else endpoints.reserve(choice, request)

    def observe(self, seen: Observation) -> None:
        """What the policy may learn from."""
        if isinstance(self._policy, Learns):
            try:
                self._policy.observe(seen)
            except Exception as error:  # noqa: BLE001 - as in `pick`
                self._note(error)

    def is_ready(self, *, embeds: bool = False) -> bool:
        """Some pair could serve, were it free; with `embeds`, some engine could make a vector."""
        return self.endpoints.is_ready(embeds=embeds)

    def _instead(self, request: RoutingView, error: Exception) -> Choice | None:
        policy, why = self._note(error)
        choice = self._least_loaded.choose(request, self.endpoints)
        return None if choice is None else Choice(choice.pair, PolicyFailed(policy, f"{why}: {error}"))

    def _note(self, error: Exception) -> tuple[str, str]:
        policy, why = type(self._policy).__qualname__, type(error).__name__
        if why not in self._failures:
            self._failures.add(why)
            log.error("policy %s: LeastLoaded chooses in its place", policy, exc_info=error)
        return policy, why
