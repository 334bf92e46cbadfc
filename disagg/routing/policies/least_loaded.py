"""The pair that is least loaded, both sides together: by requests, and among equals by KV tokens.

Symbols: n requests and k KV tokens on an endpoint, all frontends' together as far as is known
Chooses: the endpoint, or the pair of those that have met, with the least (n, k); over a pair the sums count
"""

from __future__ import annotations

from copy import copy
from itertools import tee

from disagg.roles import Role
from disagg.routing.endpoints import Pair, RankId
from disagg.routing.load import Candidate, Endpoints, Score
from disagg.routing.view import Choice, Reason, RoutingView


class Weighed(Reason, frozen=True):
    """The reason of LeastLoaded: what ran on both sides of the pair before this request."""

    avoided: int  # sides that the request would rather have avoided
    requests: int
    kv_tokens: int


class LeastLoaded:
    """Of aggregated engines the least loaded endpoint; where none has room, the least loaded pair. For a vector, of
    embedding engines the least loaded endpoint."""

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        if request.embeds:
            return best_alone(Role.EMBEDDING, request, endpoints)
        if request.prefix_on is not None and (choice := best_after(request.prefix_on, request, endpoints)) is not None:
            return choice
        return best_aggregated(request, endpoints) or best_pair(request, endpoints)


class SamePrompt(Weighed, frozen=True):
    """The reason for a sample that follows another one of its prompt."""


def best_after(rank: RankId, request: RoutingView, endpoints: Endpoints) -> Choice | None:
    """At the rank that has just read this prompt, if it has room; with the least loaded decode that it has met."""
    for score, endpoint in endpoints.fitting_on(rank.life, Role.AGGREGATED, request):
        if endpoint.id == rank and not score[0]:
            return Choice(Pair(None, endpoint), SamePrompt(*score), request.prompt_tokens - 1)
    for score, prefill in endpoints.fitting_on(rank.life, Role.PREFILL, request):
        if prefill.id == rank and not score[0]:
            for other, decode in endpoints.fitting(Role.DECODE, request):
                if prefill.life in endpoints.peers_of(decode):
                    return Choice(Pair(prefill, decode), SamePrompt(*_sum(score, other)), request.prompt_tokens - 1)
    return None


def best_aggregated(request: RoutingView, endpoints: Endpoints) -> Choice | None:
    """The least loaded aggregated endpoint with room."""
    return best_alone(Role.AGGREGATED, request, endpoints)


def best_alone(role: Role, request: RoutingView, endpoints: Endpoints) -> Choice | None:
    """Of a role that has no partner, the least loaded endpoint with room."""
    for score, endpoint in endpoints.fitting(role, request):
        return Choice(Pair(None, endpoint), Weighed(*score))
    return None


def best_pair(request: RoutingView, endpoints: Endpoints) -> Choice | None:
    """The least loaded pair that has met and has room on both sides.

    It goes through decode endpoints from the best on, and finds the best prefill for each. It stops when the next
    decode endpoint would be no better even with the best prefill of all. Where all have met, it stops after the first.
    """
    (prefills,) = tee(endpoints.fitting(Role.PREFILL, request), 1)  # each copy of it goes through all, fetched once
    first = next(copy(prefills), None)
    if first is None:
        return None
    least, count = first[0], len(endpoints.of(Role.PREFILL))
    best: tuple[Score, Pair] | None = None
    best_on = _BestOn(endpoints, request)
    lives: set[str] = set()
    for score, decode in endpoints.fitting(Role.DECODE, request):
        if best is not None and _sum(score, least) >= best[0]:
            break
        if decode.life in lives:
            continue  # its engine's other ranks have met the same, and one that is better has been seen
        lives.add(decode.life)
        peers = endpoints.peers_of(decode)
        if len(peers) ** 2 < count:  # so few that it is quicker to look at each than to search the order for the first
            found = min(filter(None, map(best_on.__getitem__, peers)), key=_score, default=None)
        else:
            found = next((candidate for candidate in copy(prefills) if candidate[1].life in peers), None)
        if found is not None and (best is None or _sum(score, found[0]) < best[0]):
            best = _sum(score, found[0]), Pair(found[1], decode)
    return None if best is None else Choice(best[1], Weighed(*best[0]))


class _BestOn(dict[str, Candidate | None]):
    """A prefill engine's life -> the best of its endpoints that have room, if any has; each is looked for once."""

    def __init__(self, endpoints: Endpoints, request: RoutingView) -> None:
        super().__init__()
        self._endpoints, self._request = endpoints, request

    def __missing__(self, life: str) -> Candidate | None:
        fitting = self._endpoints.fitting_on(life, Role.PREFILL, self._request)
        found = self[life] = min(fitting, key=_score, default=None)
        return found


def _score(candidate: Candidate) -> Score:
    return candidate[0]


def _sum(one: Score, other: Score) -> Score:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]
