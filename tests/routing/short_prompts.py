"""A policy of one file: short prompts go to aggregated engines, long ones to pairs, where there is room."""

from __future__ import annotations

from disagg.routing.load import Endpoints
from disagg.routing.policies.least_loaded import best_aggregated, best_pair
from disagg.routing.view import Choice, Reason, RoutingView


class ByLength(Reason, frozen=True):
    prompt_tokens: int
    is_short: bool


class ShortPrompts:
    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        is_short = request.prompt_tokens < 100
        ways = [best_aggregated, best_pair] if is_short else [best_pair, best_aggregated]
        choice = ways[0](request, endpoints) or ways[1](request, endpoints)
        return choice and Choice(choice.pair, ByLength(request.prompt_tokens, is_short))
