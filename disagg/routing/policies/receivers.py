"""The decode rank that a prefill rank would send a prompt's KV to: the cheapest that it has met.

Way:   Predicted, once a choice -> [Receivers.of], of each prefill rank that is worth a look
In:    what decoding would cost on each decode rank; the laws of transfers, and how ways between engines differ
Out:   a Receiver: predicted.py's X + decoding, in seconds
Owns:  what it has found for this one request. Nothing changes meanwhile

Where ways are alike: of those within TIE and TIE_S of the cheapest the one with the least on it, then at random. Where
they differ: the cheapest of DECODES_BY_LANE with the cheapest decoding, and of DECODES_OF_A_PLACE in each place that
the prefill is in; else as where they are alike.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence, Set

import msgspec

from disagg.routing.cached_prompt import CachedPrompt
from disagg.routing.cost.costs import Costs
from disagg.routing.endpoints import Endpoint
from disagg.routing.load import Endpoints

TIE, TIE_S = 0.002, 0.001
DECODES_BY_LANE = 12
DECODES_OF_A_PLACE = 2
NOBODY: Set[str] = frozenset()

_Decode = tuple[float, float, float, Endpoint]  # decoding in s; a number at random; moving in s; the rank


class Receiver(msgspec.Struct, gc=False):
    """What decoding there and the transfer to it would cost, and the transfer alone."""

    cost_s: float
    endpoint: Endpoint
    transfer_s: float


class _Candidate(msgspec.Struct, gc=False):
    """A decode rank, as seen by no prefill in particular."""

    decoding_s: float
    moving_s: float  # as all ways are on average
    endpoint: Endpoint
    peers: Set[str]


class Receivers:
    """`decodes`: those that are looked at, one at least, the least loaded first; `decoding_s`: what decoding costs
    there. `least_s`: no prefill has a cheaper receiver."""

    def __init__(
        self,
        decodes: list[Endpoint],
        decoding_s: list[float],
        prompt_tokens: int,
        endpoints: Endpoints,
        cached: CachedPrompt,
        costs: Costs,
        random: random.Random,
    ) -> None:
        self._decodes, self._decoding_s, self._endpoints = decodes, decoding_s, endpoints
        self._costs, self._random = costs, random
        all_s = costs.transfer_s(prompt_tokens)
        self._moving_s = [all_s] * len(decodes)
        if cached.most:
            for index, rank in enumerate(decodes):
                if has := cached.of(rank)[0]:
                    self._moving_s[index] = costs.transfer_s(prompt_tokens - has)
        self._by_life: dict[str, Receiver | None] = {}
        self._usual: Receiver | None = None  # where ways are alike most prefills have met it
        self._usual_peers = NOBODY
        self._lanes: _Lanes | None = None
        if costs.ways.differ:
            self._lanes = _Lanes(decodes, decoding_s, self._moving_s, endpoints, costs, random)
            self.least_s = min(decoding_s) + min(self._moving_s) * costs.ways.least
        else:
            self._usual, self.least_s = self._least(range(len(decodes)))
            self._usual_peers = endpoints.peers_of(self._usual.endpoint)

    def of(self, reader: Endpoint, within_s: float = float("inf")) -> Receiver | None:
        """None: it has met none of them; or, where ways differ, none would cost less than `within_s`, which is never
        more than in the call before."""
        life = reader.life
        if life in self._usual_peers:
            return self._usual
        if life not in self._by_life:
            lanes = self._lanes
            found = None if lanes is None else lanes.nearest(reader, within_s)
            if found is None and (lanes is None or not lanes.has_met(life)):
                met = [at for at, each in enumerate(self._decodes) if life in self._endpoints.peers_of(each)]
                found = self._least(met)[0] if met else None
            self._by_life[life] = found
        return self._by_life[life]

    def _least(self, indexes: Sequence[int]) -> tuple[Receiver, float]:
        """Of some, over ways as they are on average; and what the cheapest of them would cost."""
        decodes, decoding_s, moving_s = self._decodes, self._decoding_s, self._moving_s
        costs_s = [decoding_s[at] + moving_s[at] for at in indexes]
        least_s = min(costs_s)
        limit_s = least_s * (1 + TIE) + TIE_S
        near = [at for at, cost_s in zip(indexes, costs_s, strict=True) if cost_s <= limit_s]
        best = near[0]
        if len(near) > 1:
            near.sort(key=decoding_s.__getitem__)
            draw = self._random.random
            best = min((decodes[at].load, draw(), at) for at in near)[2]
        return Receiver(decoding_s[best] + moving_s[best], decodes[best], moving_s[best]), least_s


class _Lanes:
    """Where ways between engines differ."""

    def __init__(
        self,
        decodes: list[Endpoint],
        decoding_s: list[float],
        moving_s: list[float],
        endpoints: Endpoints,
        costs: Costs,
        random: random.Random,
    ) -> None:
        self._ways, self._peers_of = costs.ways, endpoints.peers_of
        draws = [random.random() for _ in decodes]
        self._decodes: list[_Decode] = sorted(zip(decoding_s, draws, moving_s, decodes, strict=True))
        self._cheapest = self._candidates(self._decodes[:DECODES_BY_LANE])
        self._by_place: dict[str, list[_Decode]] | None = None  # the cheapest of each
        self._near: dict[str, list[_Candidate]] = {}  # the same, of places that were asked for

    def has_met(self, life: str) -> bool:
        """One of the cheapest."""
        return any(life in each.peers for each in self._cheapest)

    def nearest(self, reader: Endpoint, within_s: float) -> Receiver | None:
        sender, life, ways = reader.engine, reader.life, self._ways
        best, best_s, best_moving_s = None, within_s, 0.0
        near = [self._in_place(each) for each in sender.place] if ways.differ_by_place else []
        for some in (*near, self._cheapest):
            for each in some:
                if each.decoding_s >= best_s:
                    break
                if each.decoding_s + each.moving_s * ways.least < best_s and life in each.peers:
                    moving_s = each.moving_s * ways.of(sender, each.endpoint.engine)
                    if each.decoding_s + moving_s < best_s:
                        best, best_s, best_moving_s = each.endpoint, each.decoding_s + moving_s, moving_s
        return None if best is None else Receiver(best_s, best, best_moving_s)

    def _in_place(self, place: str) -> list[_Candidate]:
        """The cheapest there."""
        if self._by_place is None:
            self._by_place = {}
            for decode in self._decodes:
                for name in decode[3].engine.place:
                    there = self._by_place.get(name)
                    if there is None:
                        self._by_place[name] = [decode]
                    elif len(there) < DECODES_OF_A_PLACE:
                        there.append(decode)
        if place not in self._near:
            self._near[place] = self._candidates(self._by_place.get(place, ()))
        return self._near[place]

    def _candidates(self, decodes: Iterable[_Decode]) -> list[_Candidate]:
        return [_Candidate(cost_s, moving_s, each, self._peers_of(each)) for cost_s, _, moving_s, each in decodes]
