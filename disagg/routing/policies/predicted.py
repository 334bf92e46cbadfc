"""The engines on which a request would cost everybody the least time. Ours, the default.

Symbols, times in seconds; all laws are learnt while engines serve (cost/costs.py):
  P        prompt tokens; h(e) of them cached on e; u = P - h
  E        tokens that the answer is expected to have
  q(e)     prompt tokens that wait to be read on e, cached ones left out
  n, k(e)  requests on e, and their KV tokens
  D(e, q)  until q waiting tokens are read; R(e, u, h) to read the prompt; X(t) to move t tokens of KV
  S(e, n, k)  a decode step
  ρ        the share of their time in which ranks that read prompts are busy, of late

Cost of reading on e      D(e, q) + R(e, u, h) / (1 - min(ρ, BUSY_MAX))
  Its own wait, its own reading, and what its reading costs those that come after it: in a queue that is busy for a
  share ρ of the time, one more second of work delays later requests by ρ / (1 - ρ) seconds in all.
Cost of decoding on e     E · S(e, n+1, k+P+E/2) + n · E/2 · (S(e, n+1, k+P) - S(e, n, k))
  Its own tokens, and what it slows the n others by; they have half of their answers before them.
Pair (p, d)               reading on p + X(P - h(d)) + decoding on d
Engine g that serves alone    reading on g + n · R(g, u, h) + decoding on g
  While it reads, the n others wait for their next token.

Chooses: the least cost. Costs within TIE of it count as equal: of those the rank with the least in its cache, so that
         cold prompts spread, then at random. Where a model has pairs and engines that serve alone, the kind that
         requests of about this u went to last is left only for one that costs KEEP less.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

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

BUSY_MAX = 0.8
TIE, TIE_S = 0.05, 0.001
KEEP = 0.15
LOOKED_AT = 48  # of each role the least loaded ones, and as many of those that have most of the prompt


class LeastCost(Forecast, frozen=True):
    """What was expected of the choice, in milliseconds, and what it beat."""

    cost_ms: float
    cached_tokens: int
    next_best: str = ""  # the best of the other kind, or of other readers
    next_cost_ms: float = 0.0
    busy: float = 0.0


class _Side(NamedTuple):
    """An endpoint, and what it would cost there."""

    cost_s: float
    endpoint: Endpoint
    wait_s: float = 0.0
    read_s: float = 0.0
    step_s: float = 0.0
    cached: int = 0


class _Way(NamedTuple):
    """A pair, or one that serves alone."""

    cost_s: float
    reader: _Side
    decode: _Side
    transfer_s: float

    @property
    def pair(self) -> Pair:
        reader, decode = self.reader.endpoint, self.decode.endpoint
        return Pair(None if reader is decode else reader, decode)


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
        self.costs, self._random = Costs(surroundings.prior), surroundings.random

    def observe(self, observation: Observation) -> None:
        self.costs.observe(observation)

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        if request.embeds:
            return self._least_loaded.choose(request, endpoints)
        if request.prefix_on is not None and (choice := best_after(request.prefix_on, request, endpoints)) is not None:
            return choice
        held = endpoints.cached(request)
        best, second = self._best(request, endpoints, held)
        if best is None:
            return None
        return Choice(best.pair, self._reason(best, second), best.reader.cached)

    def _best(self, request: RoutingView, endpoints: Endpoints, held: CachedPrompt) -> tuple[_Way | None, _Way | None]:
        """The way to go, and what it beat."""
        alone, next_alone = self._best_alone(request, endpoints, held)
        paired, next_paired = self._best_pair(request, endpoints, held)
        if alone is None or paired is None:
            return (alone, next_alone) if paired is None else (paired, next_paired)
        to_read = min(alone.reader.cached, paired.reader.cached)
        kind = (request.prompt_tokens - to_read).bit_length()
        kept = self._last_kind.get(kind, alone.cost_s > paired.cost_s)
        old, new = (paired, alone) if kept else (alone, paired)
        best = new if new.cost_s < old.cost_s * (1 - KEEP) else old
        self._last_kind[kind] = best is paired
        return best, alone if best is paired else paired

    def _best_alone(
        self, request: RoutingView, endpoints: Endpoints, held: CachedPrompt
    ) -> tuple[_Way | None, _Way | None]:
        ways = []
        for endpoint in _looked_at(Role.AGGREGATED, request, endpoints, held):
            reader, decode = self._reading(endpoint, request, held), self._decoding(endpoint, request)
            stall_s = endpoint.load[0] * reader.read_s
            ways.append(_Way(reader.cost_s + stall_s + decode.cost_s, reader, decode, 0.0))
        if not ways:
            return None, None
        best = self._pick(ways, endpoints)
        return best, min((way for way in ways if way is not best), key=_cost, default=None)

    def _best_pair(
        self, request: RoutingView, endpoints: Endpoints, held: CachedPrompt
    ) -> tuple[_Way | None, _Way | None]:
        decodes = sorted(
            (self._decoding(each, request) for each in _looked_at(Role.DECODE, request, endpoints, held)), key=_cost
        )
        if not decodes:
            return None, None
        ways = []
        for prefill in _looked_at(Role.PREFILL, request, endpoints, held):
            reader = self._reading(prefill, request, held)
            ways += self._with_best_decode(reader, decodes, request, endpoints, held)
        if not ways:
            return None, None
        best = self._pick(ways, endpoints)
        others = (way for way in ways if way.reader.endpoint is not best.reader.endpoint)
        return best, min(others, key=_cost, default=None)

    def _with_best_decode(
        self,
        reader: _Side,
        decodes: list[_Side],
        request: RoutingView,
        endpoints: Endpoints,
        held: CachedPrompt,
    ) -> list[_Way]:
        """The cheapest decode that this prefill has met; `decodes`: cheapest first."""
        life = reader.endpoint.life
        whole_s = self.costs.transfer_s(request.prompt_tokens)
        best: _Way | None = None
        near: list[_Way] = []
        for decode in decodes:
            if best is not None and reader.cost_s + decode.cost_s > best.cost_s * (1 + TIE) + TIE_S:
                break
            if life not in endpoints.peers_of(decode.endpoint):
                continue
            has = held.of(decode.endpoint)[0]
            transfer_s = self.costs.transfer_s(request.prompt_tokens - has) if has else whole_s
            way = _Way(reader.cost_s + transfer_s + decode.cost_s, reader, decode, transfer_s)
            near.append(way)
            if best is None or way.cost_s < best.cost_s:
                best = way
        if best is None:
            return []
        limit = best.cost_s * (1 + TIE) + TIE_S
        return [min((way for way in near if way.cost_s <= limit), key=self._by_load_of_decode)]

    def _by_load_of_decode(self, way: _Way) -> tuple[int, int, float]:
        return *way.decode.endpoint.load, self._random.random()

    def _pick(self, ways: list[_Way], endpoints: Endpoints) -> _Way:
        least = min(ways, key=_cost).cost_s
        near = [way for way in ways if way.cost_s <= least * (1 + TIE) + TIE_S]
        if len(near) == 1:
            return near[0]
        return min(near, key=lambda way: (endpoints.cached_tokens(way.reader.endpoint), self._random.random()))

    def _reading(self, endpoint: Endpoint, request: RoutingView, held: CachedPrompt) -> _Side:
        cached = min(held.of(endpoint)[1], request.prompt_tokens - 1)  # the last token is always read
        wait_s = self.costs.drain_s(endpoint.id, endpoint.queued_tokens)
        read_s = self.costs.read_s(endpoint.id, request.prompt_tokens - cached, cached)
        cost_s = wait_s + read_s / (1 - min(self.costs.busy, BUSY_MAX))
        return _Side(cost_s, endpoint, wait_s, read_s, cached=cached)

    def _decoding(self, endpoint: Endpoint, request: RoutingView) -> _Side:
        costs, prompt = self.costs, request.prompt_tokens
        tokens = min(request.new_tokens, request.expected_tokens or costs.output_tokens)
        legs, kv_tokens = endpoint.load
        step_s = costs.step_s(endpoint.id, legs + 1, kv_tokens + prompt + tokens / 2)
        slower_s = costs.step_s(endpoint.id, legs + 1, kv_tokens + prompt) - costs.step_s(endpoint.id, legs, kv_tokens)
        return _Side(tokens * step_s + legs * tokens / 2 * slower_s, endpoint, step_s=step_s)

    def _reason(self, best: _Way, second: _Way | None) -> LeastCost:
        return LeastCost(
            cost_ms=_ms(best.cost_s),
            wait_ms=_ms(best.reader.wait_s),
            read_ms=_ms(best.reader.read_s),
            transfer_ms=_ms(best.transfer_s),
            itl_ms=_ms(best.decode.step_s),
            cached_tokens=best.reader.cached,
            next_best=second.pair.name if second else "",
            next_cost_ms=_ms(second.cost_s) if second else 0.0,
            busy=round(self.costs.busy, 3),
        )


def _looked_at(role: Role, request: RoutingView, endpoints: Endpoints, held: CachedPrompt) -> Iterable[Endpoint]:
    """With room: the least loaded ones, and those that have most of the prompt; none to be avoided, if there are
    others."""
    found: dict[Endpoint, int] = {}
    for score, endpoint in islice(endpoints.fitting(role, request), LOOKED_AT):
        found[endpoint] = score[0]
    if len(endpoints.of(role)) > LOOKED_AT:
        warm = (each for each in held.warmest() if each.engine.role is role and endpoints.has_room(each, request))
        for endpoint in islice(warm, LOOKED_AT):
            found[endpoint] = int(endpoint.life in request.avoid)
    good = [endpoint for endpoint, avoided in found.items() if not avoided]
    return good or list(found)


def _cost(what: _Side | _Way) -> float:
    return what.cost_s


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
