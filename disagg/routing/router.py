"""What admission asks: where this request would go now, or None.

Way:   admission -> [Router.consider] -> policy -> Choice; admission -> Endpoints.reserve -> Reservation -> Attempt
Owns:  nothing but the policy, which is about tokens: where a vector is made LeastLoaded chooses. It awaits nothing, so
       no decision is half made
Fails: a policy that raises, or chooses what may not be taken, costs the request nothing: LeastLoaded chooses instead,
       which is logged once for each kind of error, and told in the request's facts
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence

from disagg.kv_events.blocks import BlockHasher
from disagg.routing.connections import Connections
from disagg.routing.load import Endpoints
from disagg.routing.observations import Observation
from disagg.routing.policies.least_loaded import LeastLoaded
from disagg.routing.policy import Learns, Policy
from disagg.routing.view import Choice, Forecast, Reason, RoutingView

log = logging.getLogger(__name__)
NO_PATH: array[int] = array("Q")


class PolicyFailed(Reason, frozen=True):
    """LeastLoaded chose in its place."""

    policy: str
    why: str


class Router:
    """`connections`: to all engines of the registry; `endpoints`: of those that may be chosen now. `hasher`: of KV
    blocks; None: no policy is told what is cached. `holds_back`: prompts wait in admission until their engine is nearly
    done with those before, so that one that comes later may go first."""

    def __init__(
        self, connections: Connections, policy: Policy | None = None, hasher: BlockHasher | None = None
    ) -> None:
        self._hasher = hasher
        self.connections, self.endpoints = connections, connections.endpoints
        self._policy = policy or LeastLoaded()
        self._least_loaded = LeastLoaded()
        self._failures: set[str] = set()  # that the log has
        self.reads_prefixes = bool(getattr(self._policy, "reads_prefixes", False))
        self._learner = self._policy if isinstance(self._policy, Learns) else None
        self.learns = self._learner is not None
        self.holds_back = bool(getattr(self._policy, "holds_back", False))
        self.endpoints.on_observation = self.observe

    def consider(self, request: RoutingView) -> Choice | None:
        """Where the request would go now; None while nothing has room."""
        endpoints = self.endpoints
        try:
            choice = (self._least_loaded if request.embeds else self._policy).choose(request, endpoints)
            if choice is not None:
                _check(choice, request, endpoints)
        except Exception as error:  # noqa: BLE001 - somebody else's code, called while frames of other requests are handed out
            choice = self._instead(request, error)
        return choice

    def unread_tokens(self, request: RoutingView) -> int:
        """Of its prompt, what no engine has cached: what it costs to serve it, at the least."""
        return max(1, request.prompt_tokens - self.endpoints.cached(request).most)

    def forecast(self, choice: Choice) -> Forecast | None:
        """What the policy expects of its choice, if it says so."""
        return choice.reason if isinstance(choice.reason, Forecast) else None

    def path(self, token_ids: Sequence[int], adapter: str, salt: str = "") -> array[int]:
        """The keys of a prompt's KV blocks, if the policy asks for them."""
        if self._hasher is None or not self.reads_prefixes:
            return NO_PATH
        return self._hasher.path(token_ids, adapter, salt)

    def observe(self, seen: Observation) -> None:
        """What the policy may learn from."""
        if self._learner is not None:
            try:
                self._learner.observe(seen)
            except Exception as error:  # noqa: BLE001 - as in `consider`
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


def _check(choice: Choice, request: RoutingView, endpoints: Endpoints) -> None:
    """Raises where what a policy chose may not be taken, or would stop those who use it: a host cannot read a number of
    tokens that is none."""
    if not endpoints.is_free_for(choice.pair, request):
        raise ValueError(f"{choice.pair.name} is not free")
    cached, reason = choice.cached_tokens, choice.reason
    if not isinstance(cached, int):
        raise TypeError(f"cached_tokens is {cached!r}, and must be an int")
    if not 0 <= cached <= request.prompt_tokens:
        raise IndexError(f"cached_tokens is {cached}, of a prompt of {request.prompt_tokens}")
    if not isinstance(reason, Reason):
        raise TypeError(f"reason is {reason!r}, and must be a disagg.routing.view.Reason")
    if isinstance(reason, Forecast) and not isinstance(reason.ttft_s + reason.itl_s, float):
        raise TypeError(f"{type(reason).__name__} does not forecast in numbers")
