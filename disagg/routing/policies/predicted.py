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
from itertools import islice
from operator import itemgetter
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
from disagg.routing.policies.receivers import TIE, TIE_S, Receivers
from disagg.routing.policy import Surroundings
from disagg.routing.view import Choice, Forecast, RoutingView

BUSY_MAX = 0.95  # towards 1 it grows without bound
KEEP = 0.15
ROUNDING_S = 1e-6  # of sums of seconds, and more
READERS = tuple(role for role, kind in ROLES.items() if kind.reads_prompts and not kind.embeds)
LOOKED_AT = 48  # of each role the least loaded ones, and as many of those that have most of the prompt


class LeastCost(Forecast, frozen=True):
    """What was expected of the choice, in milliseconds, and what it beat."""

    cost_ms: float
    cached_tokens: int
    next_best: str = ""  # of the other kind, or the best pair with another reader
    next_cost_ms: float = 0.0
    busy: float = 0.0


# A rank that could read the prompt: what that would cost in s, its number among those that are looked at, the tokens
# that it has cached, the seconds of its own reading, the rank. A plain tuple, as there are up to a hundred of them.
_Reader = tuple[float, int, int, float, Endpoint]


class _Way(NamedTuple):
    """A pair, or one that serves alone, and what it would cost. `number`: of its reader. A plain tuple until it is
    chosen: of equal cost the one with the lower number is less."""

    cost_s: float
    number: int
    reader: Endpoint
    decode: Endpoint
    cached: int
    read_s: float
    transfer_s: float

    @property
    def pair(self) -> Pair:
        return Pair(None if self.reader is self.decode else self.reader, self.decode)


_Tuple = tuple[float, int, Endpoint, Endpoint, int, float, float]


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
        self.costs.age(lambda: (rank for role in READERS for rank in endpoints.of(role)))
        cached = endpoints.cached(request)
        best, second = self._best(request, endpoints, cached)
        return None if best is None else Choice(best.pair, self._reason(request, best, second), best.cached)

    def _best(
        self, request: RoutingView, endpoints: Endpoints, cached: CachedPrompt
    ) -> tuple[_Way | None, _Way | None]:
        """The way to go, and what it beat."""
        alone, next_alone = self._best_alone(request, endpoints, cached)
        paired, next_paired = self._best_pair(request, endpoints, cached)
        if alone is None or paired is None:
            return (alone, next_alone) if paired is None else (paired, next_paired)
        kind = (request.prompt_tokens - min(alone.cached, paired.cached)).bit_length()
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
        ways = list[_Tuple]()
        readers, decoding_s = self._readers(ranks, request, cached), self._decoding_s(ranks, request)
        for (cost_s, number, has, read_s, rank), own_s in zip(readers, decoding_s, strict=True):
            cost_s += rank.load[0] * read_s + own_s / self._left(rank)
            ways.append((cost_s, number, rank, rank, has, read_s, 0.0))
        return self._two_best(ways, endpoints)

    def _best_pair(
        self, request: RoutingView, endpoints: Endpoints, cached: CachedPrompt
    ) -> tuple[_Way | None, _Way | None]:
        """It goes through readers from the cheapest on, until the next one could be neither the best nor the second."""
        ranks = _looked_at(Role.DECODE, request, endpoints, cached)
        if not ranks or not (reading := _looked_at(Role.PREFILL, request, endpoints, cached)):
            return None, None
        decoding_s, prompt = self._decoding_s(ranks, request), request.prompt_tokens
        receivers = Receivers(ranks, decoding_s, prompt, endpoints, cached, self.costs, self._random)
        ways = list[_Tuple]()
        least = second = limit = float("inf")
        for cost_s, number, has, read_s, rank in sorted(self._readers(reading, request, cached)):
            least_s = cost_s + receivers.least_s
            if least_s > second and least_s > limit:
                break
            if (found := receivers.of(rank, (limit if limit > second else second) - cost_s + ROUNDING_S)) is not None:
                cost_s += found.cost_s
                ways.append((cost_s, number, rank, found.endpoint, has, read_s, found.transfer_s))
                if cost_s < least:
                    least, second, limit = cost_s, least, cost_s * (1 + TIE) + TIE_S
                elif cost_s < second:
                    second = cost_s
        return self._two_best(ways, endpoints) if ways else (None, None)

    def _two_best(self, ways: list[_Tuple], endpoints: Endpoints) -> tuple[_Way, _Way | None]:
        """The one to take, and the cheapest with another reader."""
        best = least = min(ways)
        limit = least[0] * (1 + TIE) + TIE_S
        near = [way for way in ways if way[0] <= limit]
        if len(near) > 1:
            near.sort(key=itemgetter(1))
            held, draw = endpoints.cached_tokens, self._random.random
            best = min((held(way[2]), draw(), way[1], way) for way in near)[3]
        second = least if best is not least else min((way for way in ways if way is not best), default=None)
        return _Way(*best), second and _Way(*second)

    def _readers(self, ranks: list[Endpoint], request: RoutingView, cached: CachedPrompt) -> list[_Reader]:
        costs, prompt = self.costs, request.prompt_tokens
        busy = min(self._busy_for(request), BUSY_MAX)
        later = 1 + busy / (2 * (1 - busy))
        token_s, factors = costs.drain_token_s, costs.reading_factors.uneven
        cold_s, depths, is_loaded = costs.reading_s(prompt, 0), self._depths(prompt, cached), not cached.is_on_devices
        readers, number = list[_Reader](), 0
        for rank in ranks:
            has, read_s, slot = 0, cold_s, rank.slot
            for slots, tokens, seconds in depths:
                if slot not in slots:
                    break
                has, read_s = tokens, seconds
            if is_loaded and has and (loaded := has - cached.of(rank)[0]) > 0:
                read_s = costs.reading_s(prompt - has, has, loaded)
            cost_s = (rank.to_read + rank.others.to_read + rank.bound) * token_s + read_s * later
            if factors and rank.id in factors:
                factor = factors[rank.id]
                cost_s, read_s = cost_s * factor, read_s * factor
            readers.append((cost_s, number, has, read_s, rank))
            number += 1  # noqa: SIM113 - enumerate would make a tuple a rank
        return readers

    def _depths(self, prompt: int, cached: CachedPrompt) -> list[tuple[frozenset[int], int, float]]:
        """Slots that have so many tokens of it at least, and what it takes to read the rest; with the fewest first."""
        found = []
        for slots, tokens in cached.depths():
            has = min(tokens, prompt - 1)  # the last token is always read
            found.append((slots, has, self.costs.reading_s(prompt - has, has)))
        return found

    def _busy_for(self, request: RoutingView) -> float:
        """ρ. Who goes before others, or would be too late, does not wait for a rank to spare them anything."""
        return 0.0 if request.priority > 0 or request.hurries else self.costs.busy.mean

    def _decoding_s(self, ranks: list[Endpoint], request: RoutingView) -> list[float]:
        costs, prompt = self.costs, request.prompt_tokens
        tokens = min(request.new_tokens, request.expected_tokens or costs.output_tokens)
        (base_s, leg_s, token_s), factors = costs.step.weights, costs.step_factors.uneven
        own, slower_s = prompt + tokens / 2, (leg_s + token_s * prompt) * tokens / 2
        found = []
        for rank in ranks:
            legs, kv_tokens = rank.load
            cost_s = tokens * (base_s + leg_s * (legs + 1) + token_s * (kv_tokens + own)) + legs * slower_s
            if factors and rank.id in factors:
                cost_s *= factors[rank.id]
            found.append(cost_s)
        return found

    def _left(self, rank: Endpoint) -> float:
        """Of the time of a rank that serves alone: the share in which it reads no prompt."""
        return 1 - min(self.costs.busy.of(rank.id), BUSY_MAX)

    def _reason(self, request: RoutingView, best: _Way, second: _Way | None) -> LeastCost:
        costs, reader, decode = self.costs, best.reader, best.decode
        legs, kv_tokens = decode.load
        step_s = costs.step_s(decode.id, legs + 1, kv_tokens + request.prompt_tokens)
        return LeastCost(
            cost_ms=_ms(best.cost_s),
            wait_ms=_ms(costs.drain_s(reader.id, reader.queued_tokens)),
            read_ms=_ms(best.read_s),
            transfer_ms=_ms(best.transfer_s),
            itl_ms=_ms(step_s / self._left(decode) if reader is decode else step_s),
            cached_tokens=best.cached,
            next_best=second.pair.name if second else "",
            next_cost_ms=_ms(second.cost_s) if second else 0.0,
            busy=round(self._busy_for(request), 3),
        )


def _looked_at(role: Role, request: RoutingView, endpoints: Endpoints, cached: CachedPrompt) -> list[Endpoint]:
    """With room: the least loaded ones, and those that have most of the prompt; none to be avoided, if there are
    others."""
    found = endpoints.first_fitting(role, request, LOOKED_AT)
    if cached.most and len(endpoints.of(role)) > LOOKED_AT:
        known = set(found)
        found += islice((each for each in endpoints.warmest(role, request, cached) if each not in known), LOOKED_AT)
    return found


def _ms(seconds: float) -> float:
    return int(seconds * 1e6 + 0.5) / 1e3  # a third of the time of `round`
