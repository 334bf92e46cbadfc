"""Requests of one session go to one rank, as long as that one is not much fuller than the others.

Symbols: s the session's name; w(e) = xxh3_64(s, seed of the rank e); n(e) requests on e; n̄ their mean over all with
         room; SLACK, and SPARE requests
Chooses: of the ranks with n(e) <= SLACK · n̄ + SPARE the one with the greatest w(e). For TTL_S after its last request a
         session stays where it was, if that one still has room so, though a new rank would be greater now
Sources: D. Thaler, C. Ravishankar, "Using name-based mappings to increase hit rates", 1998 (rendezvous hashing);
         V. Mirrokni et al., "Consistent hashing with bounded loads", 2018

Every frontend comes to the same rank without asking the others. A request without a session has its prompt's first KV
blocks as one, and without a whole block it goes by load.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import xxhash

from disagg.roles import Role
from disagg.routing.endpoints import Endpoint, RankId
from disagg.routing.load import Endpoints
from disagg.routing.policies.sides import BySide, LeastOfSide, Picked
from disagg.routing.policy import Surroundings
from disagg.routing.view import RoutingView

SLACK, SPARE = 1.25, 2
TTL_S = 600.0
SESSIONS_MAX = 100_000  # that are remembered
PREFIX_BLOCKS = 4  # of a prompt without a session


class Sticky:
    reads_prefixes = True  # of a prompt without a session

    def __init__(self) -> None:
        self._now_s: Callable[[], float] = time.monotonic
        self._by_load = LeastOfSide()
        self._last: OrderedDict[tuple[Role, bytes], tuple[RankId, float]] = OrderedDict()

    def settle(self, surroundings: Surroundings) -> None:
        self._now_s = surroundings.now_s

    def pick(self, role: Role, request: RoutingView, fitting: Sequence[Endpoint], endpoints: Endpoints) -> Picked:
        session = session_of(request)
        if not session:
            return self._by_load.pick(role, request, fitting, endpoints)
        limit = SLACK * sum(each.load[0] for each in fitting) / len(fitting) + SPARE
        open_to_it = {each.id: each for each in fitting if each.load[0] <= limit}
        last, until_s = self._last.get((role, session), (None, 0.0))
        stays = last in open_to_it and self._now_s() < until_s
        chosen = last if stays else max(open_to_it, key=lambda rank: _weight(session, rank))
        assert chosen is not None
        self._remember(role, session, chosen)
        return Picked(open_to_it[chosen], {"session": True, "stays": stays})

    def _remember(self, role: Role, session: bytes, rank: RankId) -> None:
        self._last[role, session] = rank, self._now_s() + TTL_S
        self._last.move_to_end((role, session))
        if len(self._last) > SESSIONS_MAX:
            self._last.popitem(last=False)


def session_of(request: RoutingView) -> bytes:
    return request.session.encode() or request.path[:PREFIX_BLOCKS].tobytes()


def _weight(session: bytes, rank: RankId) -> int:
    """By the engine's id, which outlives its incarnations: a session comes back to an engine that was restarted."""
    return xxhash.xxh3_64_intdigest(session, xxhash.xxh3_64_intdigest(f"{rank.engine_id}/{rank.dp_rank}".encode()))


class Session(BySide):
    def __init__(self) -> None:
        side = Sticky()
        super().__init__(side, side)
