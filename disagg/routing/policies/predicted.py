"""The engines on which a request would cost everybody the least time.

Symbols, times in seconds; all laws are learnt while engines serve (cost/costs.py):
  P        prompt tokens; h(e) of them cached on e, w(e) of these in its host's memory alone; u = P - h
  E        tokens that the answer is expected to have
  q(e)     prompt tokens that wait to be read on e, cached ones left out
  n, k(e)  requests on e, and their KV tokens
  D(e, q)  until q waiting tokens are read; R(e, u, h, w) to read the prompt; X(p, d, t) to move t tokens of KV
  S(e, n, k)  a decode step
  ρ, ρ(e)  the share of their time in which ranks that read prompts, and e, are busy with that, of late

Cost of reading on e      D(e, q) + R(e, u, h, w) · (1 + ρ / (2 · (1 - ρ))), with ρ of BUSY_MAX at most
  Its own wait, its own reading, and what its reading costs those that come after it: in a queue that is busy for a
  share ρ of the time they wait ρ / (2 · (1 - ρ)) seconds in all for each second of work (Pollaczek and Khinchine, for
  work in pieces of one size). Of a request of a priority above the usual, and of one that would miss its SLO
  else, ρ is 0: it is to be quick.
Cost of decoding on e     E · S(e, n+1, k+P+E/2) + n · E/2 · (S(e, n+1, k+P) - S(e, n, k))
  Its own tokens, and what it slows the n others by; they have half of their answers before them.
Pair (p, d)               reading on p + X(p, d, P - h(d)) + decoding on d
Engine g that serves alone  reading on g + n · R(g, u, h, w) + decoding on g / (1 - ρ(g)), with ρ(g) of BUSY_MAX at most
  While it reads, the n others wait for their next token, as this one will for others' prompts.

Chooses: the least cost. Costs within TIE of it, and TIE_S, count as equal: of those the reader with the least in its
         cache, so that cold prompts spread, and the decode with the least on it; then at random. Where a model has
         pairs and engines that serve alone, the kind that requests of about this u went to last is left only for one
         that costs KEEP less.
"""

from __future__ import annotations

import random
from collections.abc import Set
from itertools import islice
from typing import NamedTuple

from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.routing.cached_prompt import CachedPrompt
from disagg.routing.cost.costs import Costs
from disagg.routing.cost.prior import Prior
from disagg.routing.endpoints import Endpoint, Pair
from disagg.routing.load import Endpoints
from disagg.routing.observations import Observation
from disagg.routing.policies.least_loaded import LeastLoaded, best_after
from disagg.routing.policy import Surroundings
from disagg.routing.view import Choice, Forecast, RoutingView

BUSY_MAX = 0.95  # towards 1 it grows without bound
TIE, TIE_S = 0.002, 0.001
KEEP = 0.15
DECODES_BY_LANE = 12  # the cheapest ones, where ways between engines differ
DECODES_OF_A_PLACE = 2  # and the cheapest ones in each place that a reader is in
READERS = tuple(role for role, kind in ROLES.items() if kind.reads_prompts and not kind.embeds)
LOOKED_AT = 48  # of each role the least loaded ones, and as many of those that have most of the prompt


class LeastCost(Forecast, frozen=True):
    """What was expected of the choice, in milliseconds, and what it beat."""

    cost_ms: float
    cached_tokens: int
    next_best: str = ""  # of the other kind, or the best pair with another reader
    next_cost_ms: float = 0.0
    busy: float = 0.0


class _Reader(NamedTuple):
    """A rank that could read the prompt, and what that would cost."""

    cost_s: float
    endpoint: Endpoint
    cached: int
    loaded: int  # of these, what its host's memory alone has


class _Receiver(NamedTuple):
    """A decode rank, what it and the transfer to it would cost, and the transfer alone."""

    cost_s: float
    endpoint: Endpoint
    transfer_s: float


class _Candidate(NamedTuple):
    """A decode rank, as seen by no reader in particular."""

    decoding_s: float
    moving_s: float  # as all ways are on average
    endpoint: Endpoint
    peers: Set[str]


class _Candidates(NamedTuple):
    """Equal ones are in any order."""

    cheapest: list[_Candidate]
    by_place: dict[str, list[_Candidate]]


class _Way(NamedTuple):
    """A pair, or one that serves alone, and what it would cost."""

    cost_s: float
    reader: _Reader
    decode: Endpoint
    transfer_s: float

    @property
    def pair(self) -> Pair:
        return Pair(None if self.reader.endpoint is self.decode else self.reader.endpoint, self.decode)


class Predicted:
    """The formula is that of the module. It learns from `observe`, and needs the prompt's KV blocks."""

    reads_prefixes = True
    holds_back = True

    def __init__(self) -> None:
        self.costs = Costs(Prior())
        self._random = random.Random()
        self._least_loaded = LeastLoaded()
        self._last_kind: dict[int, bool] = {}  # by the logarithm of u: whether it went to a pair

    def settle(self, surroundings: Surroundings) -> None:
        self.costs, self._random = Costs(surroundings.prior, surroundings.now_s), surroundings.random

    def observe(self, observation: Observation) -> None:
        self.costs.observe(observation)

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        if request.embeds:
            return self._least_loaded.choose(request, endpoints)
        if request.prefix_on is not None and (choice := best_after(request.prefix_on, request, endpoints)) is not None:
            return choice
        self.costs.age(rank for role in READERS for rank in endpoints.of(role))
        cached = endpoints.cached(request)
        best, second = self._best(request, endpoints, cached)
        return None if best is None else Choice(best.pair, self._reason(request, best, second), best.reader.cached)

    def _best(
        self, request: RoutingView, endpoints: Endpoints, cached: CachedPrompt
    ) -> tuple[_Way | None, _Way | None]:
        """The way to go, and what it beat."""
        alone, next_alone = self._best_alone(request, endpoints, cached)
        paired, next_paired = self._best_pair(request, endpoints, cached)
        if alone is None or paired is None:
            return (alone, next_alone) if paired is None else (paired, next_paired)
        kind = (request.prompt_tokens - min(alone.reader.cached, paired.reader.cached)).bit_length()
        was_paired = self._last_kind.get(kind, alone.cost_s > paired.cost_s)
        old, new = (paired, alone) if was_paired else (alone, paired)
        best = new if new.cost_s < old.cost_s * (1 - KEEP) else old
        self._last_kind[kind] = best is paired
        return best, alone if best is paired else paired

    def _best_alone(
        self, request: RoutingView, endpoints: Endpoints, cached: CachedPrompt
    ) -> tuple[_Way | None, _Way | None]:
        ranks = _looked_at(Role.AGGREGATED, request, endpoints, cached)
        if not ranks:
            return None, None
        readers = self._readers(ranks, request, cached)
        ways = []
        for reader, (decoding_s, rank) in zip(readers, self._decoding(ranks, request), strict=True):
            stall_s = rank.load[0] * self._read_s(request, reader)
            ways.append(_Way(reader.cost_s + stall_s + decoding_s / self._left(rank), reader, rank, 0.0))
        return self._two_best(ways, endpoints)

    def _best_pair(
        self, request: RoutingView, endpoints: Endpoints, cached: CachedPrompt
    ) -> tuple[_Way | None, _Way | None]:
        ranks = _looked_at(Role.DECODE, request, endpoints, cached)
        if not ranks:
            return None, None
        decodes = self._decoding(ranks, request)
        decodes.sort(key=_cost_of_decode)
        transfer_s = self.costs.transfer_s(request.prompt_tokens)
        by_lane = self._by_lane(decodes, request, endpoints, cached) if self.costs.ways.differ else None
        found: _Receiver | None = None  # most readers have met the same ones
        nearest: dict[str, _Receiver | None] = {}  # by the reader's life
        ways = []
        for reader in self._readers(_looked_at(Role.PREFILL, request, endpoints, cached), request, cached):
            life = reader.endpoint.life
            if by_lane is not None:
                found = nearest[life] = nearest[life] if life in nearest else self._nearest(reader.endpoint, by_lane)
            if found is None or life not in endpoints.peers_of(found.endpoint):
                found = self._best_decode(life, decodes, request, endpoints, cached, transfer_s)
            if found is not None:
                ways.append(_Way(reader.cost_s + found.cost_s, reader, found.endpoint, found.transfer_s))
        return self._two_best(ways, endpoints) if ways else (None, None)

    def _best_decode(
        self,
        life: str,
        decodes: list[tuple[float, Endpoint]],
        request: RoutingView,
        endpoints: Endpoints,
        cached: CachedPrompt,
        transfer_s: float,
    ) -> _Receiver | None:
        """The cheapest that this prefill has met, with its transfer; `decodes`: the cheapest first."""
        near: list[_Receiver] = []
        least = limit = float("inf")
        for decoding_s, decode in decodes:
            if decoding_s > limit:
                break
            if life not in endpoints.peers_of(decode):
                continue
            has = cached.of(decode)[0] if cached.most else 0
            moving_s = self.costs.transfer_s(request.prompt_tokens - has) if has else transfer_s
            near.append(_Receiver(decoding_s + moving_s, decode, moving_s))
            if decoding_s + moving_s < least:
                least = decoding_s + moving_s
                limit = least * (1 + TIE) + TIE_S
        near = [each for each in near if each.cost_s <= limit]
        if len(near) < 2:
            return near[0] if near else None
        return min(near, key=lambda each: (*each.endpoint.load, self._random.random()))

    def _by_lane(
        self, decodes: list[tuple[float, Endpoint]], request: RoutingView, endpoints: Endpoints, cached: CachedPrompt
    ) -> _Candidates:
        """Of the cheapest decodes, and of the cheapest in each place, what does not depend on the reader."""
        self._random.shuffle(decodes)
        decodes.sort(key=_cost_of_decode)
        cheapest, by_place = list[_Candidate](), dict[str, list[_Candidate]]()
        beside = DECODES_OF_A_PLACE if self.costs.ways.differ_by_place else 0
        for index, (decoding_s, decode) in enumerate(decodes):
            lacking = [each for each in decode.engine.place if len(by_place.get(each, ())) < beside]
            if index >= DECODES_BY_LANE and not lacking:
                continue
            moving_s = self.costs.transfer_s(request.prompt_tokens - cached.of(decode)[0])
            candidate = _Candidate(decoding_s, moving_s, decode, endpoints.peers_of(decode))
            for each in lacking:
                by_place.setdefault(each, []).append(candidate)
            if index < DECODES_BY_LANE:
                cheapest.append(candidate)
        return _Candidates(cheapest, by_place)

    def _nearest(self, reader: Endpoint, candidates: _Candidates) -> _Receiver | None:
        """The cheapest that this prefill has met, where ways between engines are not all alike."""
        sender, life, factor_of, least = reader.engine, reader.life, self.costs.ways.of, self.costs.ways.least
        best, best_s, best_moving_s = None, float("inf"), 0.0
        near = (candidates.by_place[each] for each in sender.place if each in candidates.by_place)
        for some in (*near, candidates.cheapest):
            for decoding_s, moving_s, decode, peers in some:
                if decoding_s >= best_s:
                    break
                if decoding_s + moving_s * least < best_s and life in peers:
                    moving_s *= factor_of(sender, decode.engine)
                    if decoding_s + moving_s < best_s:
                        best, best_s, best_moving_s = decode, decoding_s + moving_s, moving_s
        return None if best is None else _Receiver(best_s, best, best_moving_s)

    def _two_best(self, ways: list[_Way], endpoints: Endpoints) -> tuple[_Way, _Way | None]:
        """The one to take, and the cheapest with another reader."""
        least = min(ways, key=_cost).cost_s
        limit = least * (1 + TIE) + TIE_S
        near = [way for way in ways if way.cost_s <= limit]
        best = near[0]
        if len(near) > 1:
            best = min(near, key=lambda way: (endpoints.cached_tokens(way.reader.endpoint), self._random.random()))
        return best, min((way for way in ways if way is not best), key=_cost, default=None)

    def _readers(self, ranks: list[Endpoint], request: RoutingView, cached: CachedPrompt) -> list[_Reader]:
        costs, prompt, has_any = self.costs, request.prompt_tokens, cached.most > 0
        busy = min(self._busy_for(request), BUSY_MAX)
        later = 1 + busy / (2 * (1 - busy))
        cold_s, drain_token_s, factors = costs.reading_s(prompt, 0), costs.drain_token_s, costs.reading_factors.uneven
        readers = []
        for rank in ranks:
            on_device, anywhere = cached.of(rank) if has_any else (0, 0)
            has = min(anywhere, prompt - 1)  # the last token is always read
            loaded = max(0, has - on_device)
            reading_s = costs.reading_s(prompt - has, has, loaded) if has else cold_s
            cost_s = (rank.queued_tokens * drain_token_s + reading_s * later) * factors.get(rank.id, 1.0)
            readers.append(_Reader(cost_s, rank, has, loaded))
        return readers

    def _read_s(self, request: RoutingView, reader: _Reader) -> float:
        cached = reader.cached
        return self.costs.read_s(reader.endpoint.id, request.prompt_tokens - cached, cached, reader.loaded)

    def _busy_for(self, request: RoutingView) -> float:
        """ρ. Who goes before others, or would be too late, does not wait for a rank to spare them anything."""
        return 0.0 if request.priority > 0 or request.hurries else self.costs.busy.mean

    def _decoding(self, ranks: list[Endpoint], request: RoutingView) -> list[tuple[float, Endpoint]]:
        costs, prompt = self.costs, request.prompt_tokens
        tokens = min(request.new_tokens, request.expected_tokens or costs.output_tokens)
        (base_s, leg_s, token_s), factors = costs.step.weights, costs.step_factors.uneven
        own, slower_s = prompt + tokens / 2, (leg_s + token_s * prompt) * tokens / 2
        found = []
        for rank in ranks:
            legs, kv_tokens = rank.load
            cost_s = tokens * (base_s + leg_s * (legs + 1) + token_s * (kv_tokens + own)) + legs * slower_s
            found.append((cost_s * factors.get(rank.id, 1.0), rank))
        return found

    def _left(self, rank: Endpoint) -> float:
        """Of the time of a rank that serves alone: the share in which it reads no prompt."""
        return 1 - min(self.costs.busy.of(rank.id), BUSY_MAX)

    def _reason(self, request: RoutingView, best: _Way, second: _Way | None) -> LeastCost:
        costs, reader, decode, has = self.costs, best.reader.endpoint, best.decode, best.reader.cached
        legs, kv_tokens = decode.load
        step_s = costs.step_s(decode.id, legs + 1, kv_tokens + request.prompt_tokens)
        return LeastCost(
            cost_ms=_ms(best.cost_s),
            wait_ms=_ms(costs.drain_s(reader.id, reader.queued_tokens)),
            read_ms=_ms(self._read_s(request, best.reader)),
            transfer_ms=_ms(best.transfer_s),
            itl_ms=_ms(step_s / self._left(decode) if reader is decode else step_s),
            cached_tokens=has,
            next_best=second.pair.name if second else "",
            next_cost_ms=_ms(second.cost_s) if second else 0.0,
            busy=round(self._busy_for(request), 3),
        )


def _looked_at(role: Role, request: RoutingView, endpoints: Endpoints, cached: CachedPrompt) -> list[Endpoint]:
    """With room: the least loaded ones, and those that have most of the prompt; none to be avoided, if there are
    others."""
    fitting = list(islice(endpoints.fitting(role, request), LOOKED_AT))
    found = [rank for score, rank in fitting if not score[0]] or [rank for _, rank in fitting]
    if cached.most and len(endpoints.of(role)) > LOOKED_AT:
        known = set(found)
        warm = (each for each in cached.warmest() if each.engine.role is role and each not in known)
        open_to_it = (each for each in warm if each.life not in request.avoid and endpoints.has_room(each, request))
        found += islice(open_to_it, LOOKED_AT)
    return found


def _cost(way: _Way) -> float:
    return way.cost_s


def _cost_of_decode(decode: tuple[float, Endpoint]) -> float:
    return decode[0]


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
