"""A policy whose choices are timed. All else it hands on."""

from __future__ import annotations

from array import array
from time import perf_counter_ns

from disagg.routing.load import Endpoints
from disagg.routing.observations import Observation
from disagg.routing.policy import Policy
from disagg.routing.view import Choice, RoutingView


class TimedPolicy:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.observe = getattr(policy, "observe", _ignore)
        self.chosen_us = array("d")  # of each call, those that found no room among them

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        start_ns = perf_counter_ns()
        try:
            return self._policy.choose(request, endpoints)
        finally:
            self.chosen_us.append((perf_counter_ns() - start_ns) / 1e3)


def _ignore(_: Observation) -> None:
    """Of a policy that learns nothing."""
