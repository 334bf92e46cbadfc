"""The endpoints that may be chosen now, least loaded first, and what this process has on them.

Way:   Connections adds and removes engines; [Endpoints] -> policy -> [Endpoints.reserve] -> Reservation
Owns:  an order by load for each role; which engine has met which, behind `peers_of`; who is alone where
Fails: never. Nothing here waits, and nothing goes through all pairs
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Set
from itertools import islice

from disagg.plane.ledger import kv_tokens_needed
from disagg.plane.messages import RankTaken
from disagg.registry.met import Met
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.routing.cached_prompt import NOT_CACHED, CachedPrompt
from disagg.routing.endpoints import ByLoad, Endpoint, Engine, Pair
from disagg.routing.observations import Observation, Read
from disagg.routing.predicted_cache import PredictedCache
from disagg.routing.prefix_index.index import PrefixIndex
from disagg.routing.reservation import Reservation
from disagg.routing.view import Choice, RoutingView

Score = tuple[int, int, int]  # is to be avoided, requests, KV tokens: less is better
Candidate = tuple[Score, Endpoint]


class Endpoints:
    """What a policy chooses from: endpoints of READY engines that are connected. `on_change` is called when a pair may
    have become free."""

    def __init__(self) -> None:
        self._orders = {role: ByLoad() for role in ROLES}  # without engines on trial
        self._engines: dict[Role, dict[str, Engine]] = {role: {} for role in ROLES}  # by life
        self._on_trial: dict[Engine, Reservation] = {}  # of requests that nobody else is to be beside
        self._is_ready: dict[bool, bool] = {}  # by `embeds`; empty: something has changed
        self.met = Met()
        self.places_taken = 0  # by this process's reservations
        self.on_change: Callable[[], None] = lambda: None
        self.on_observation: Callable[[Observation], None] = lambda _seen: None
        self.index = PrefixIndex()  # of what ranks have cached, by Endpoint.slot
        self.block_tokens = 0  # of a KV block; 0: nobody is told what is cached
        self._guesses = PredictedCache(self.index)
        self._by_slot: dict[int, Endpoint] = {}
        self._caching: dict[Role, set[int]] = {role: set() for role in ROLES}  # slots of those that have prefix caches
        self._free_slots: list[int] = []

    # for policies

    def has(self, role: Role) -> bool:
        """Whether there is an engine of this role that could serve if it had room."""
        return any(engine.is_connected for engine in self._engines[role].values())

    def of(self, role: Role) -> ByLoad:
        """Endpoints that may be chosen if they have room; without engines that one request has to itself."""
        return self._orders[role]

    def fitting(self, role: Role, request: RoutingView) -> Iterator[Candidate]:
        """Endpoints of this role that have room for the request, best first: those to be avoided come last, and before
        that the less loaded first. It is to be used up or dropped before anything changes."""
        avoid, alone, tokens = request.avoid, role in request.alone_on, request.tokens_on(role)
        last: list[Candidate] = []
        for endpoint in self._orders[role]:
            if endpoint.tokens_free < tokens or not _may_take(endpoint, alone):
                continue
            if avoid and endpoint.life in avoid:
                last.append(((1, *endpoint.load), endpoint))
            else:
                yield (0, *endpoint.load), endpoint
        yield from last

    def first_fitting(self, role: Role, request: RoutingView, most: int) -> list[Endpoint]:
        """So many of `fitting` at the most, without those to be avoided if there are others."""
        if not self._orders[role]:
            return []
        if request.avoid or request.alone_on:
            some = list(islice(self.fitting(role, request), most))
            return [rank for score, rank in some if not score[0]] or [rank for _, rank in some]
        return self._orders[role].with_room(request.tokens_on(role), most)

    def warmest(self, role: Role, request: RoutingView, cached: CachedPrompt) -> Iterator[Endpoint]:
        """Endpoints of this role that have room for the request and some of its prompt, those with most first; none to
        be avoided."""
        slots, order, tokens = self._caching[role], self._orders[role], request.tokens_on(role)
        avoid, alone = request.avoid, role in request.alone_on
        for endpoint in map(self._by_slot.__getitem__, cached.warmest(slots)) if slots else ():
            may_be = endpoint.order is order and endpoint.tokens_free >= tokens and endpoint.life not in avoid
            if may_be and _may_take(endpoint, alone):
                yield endpoint

    def fitting_on(self, life: str, role: Role, request: RoutingView) -> Iterator[Candidate]:
        """Endpoints of one engine that have room for the request, in no order; none where it is gone."""
        engine, tokens = self._engines[role].get(life), request.tokens_on(role)
        for endpoint in engine.endpoints if engine else ():
            if (
                endpoint.order is not None
                and endpoint.tokens_free >= tokens
                and _may_take(endpoint, role in request.alone_on)
            ):
                yield (int(life in request.avoid), *endpoint.load), endpoint

    def cached(self, request: RoutingView) -> CachedPrompt:
        """What the endpoints have of the prompt."""
        if not request.path or not self.block_tokens:
            return NOT_CACHED
        return CachedPrompt(self.index.overlaps(request.path), self.block_tokens)

    def cached_tokens(self, endpoint: Endpoint) -> int:
        """All that it has cached, as far as is known."""
        return self.index.blocks_of(endpoint.slot) * self.block_tokens if endpoint.slot >= 0 else 0

    def peers_of(self, decode: Endpoint) -> Set[str]:
        """Lives of the prefill engines that it has met: a real transfer between them has succeeded. (Some may be gone.)
        The one place that knows."""
        return self.met.met_with(decode.life)

    def is_free_for(self, pair: Pair, request: RoutingView) -> bool:
        """Whether a policy may choose this pair for the request now."""
        prefill, decode = pair.prefill, pair.decode
        role = ROLES[decode.engine.role]
        if role.embeds is not request.embeds or role.takes_kv_from is not (prefill.engine.role if prefill else None):
            return False
        if prefill is not None and not (prefill.life in self.peers_of(decode) and self.has_room(prefill, request)):
            return False
        return self.has_room(decode, request)

    def has_room(self, endpoint: Endpoint, request: RoutingView) -> bool:
        """Whether the request could go there now, on its side of a pair."""
        role = endpoint.engine.role
        return (
            endpoint.order is self._orders[role]
            and endpoint.tokens_free >= request.tokens_on(role)
            and _may_take(endpoint, role in request.alone_on)
        )

    # for the router

    def is_ready(self, *, embeds: bool = False) -> bool:
        """Whether some pair could serve if it had room: READY, connected, and met. `embeds`: could make vectors."""
        if embeds not in self._is_ready:
            roles = [role for role in self._engines if ROLES[role].embeds is embeds]
            self._is_ready[embeds] = any(self._could_serve(role) for role in roles)
        return self._is_ready[embeds]

    def _could_serve(self, role: Role) -> bool:
        """Alone, or with an engine whose KV it takes. Who sends some is asked for with who takes it."""
        engines, sender = self._engines[role], ROLES[role].takes_kv_from
        if sender is None:
            return bool(engines) and ROLES[role].sends_kv_to is None
        senders = self._engines[sender].keys()
        return any(not senders.isdisjoint(self.met.met_with(life)) for life in engines)

    def reserve(self, choice: Choice, request: RoutingView) -> Reservation:
        """Counts the request on both sides; where it is to be alone nobody else comes before `share` or its end."""
        pair, taken = choice.pair, {}
        for endpoint in pair.endpoints:
            new_tokens = ROLES[endpoint.engine.role].new_tokens(request.new_tokens)
            taken[endpoint] = kv_tokens_needed(request.prompt_tokens, new_tokens, endpoint.capacity.page_size)
        to_read = max(1, request.prompt_tokens - choice.cached_tokens)
        reservation = Reservation(pair, choice.reason, taken, self, to_read)
        self.places_taken += len(taken)
        if request.path and self.block_tokens:
            self._guess(pair.reader, request.path)
        if request.alone_on:
            for endpoint in pair.endpoints:
                if endpoint.engine.role in request.alone_on:
                    self._on_trial[endpoint.engine] = reservation
                    self._hide(endpoint.engine)
        return reservation

    # for connections

    def meet(self, met: Met) -> None:
        """Who has met whom has changed. It is the registry's own, which is always the newest."""
        self.met, self._is_ready = met, {}

    def add(self, engine: Engine) -> None:
        """It is READY and connected."""
        self._is_ready.clear()
        if engine.life not in self._engines[engine.role]:
            self._engines[engine.role][engine.life] = engine
            self._show(engine)

    def remove(self, engine: Engine) -> None:
        """The engine gets no more requests. Those it has run on."""
        self._is_ready.clear()
        if self._engines[engine.role].get(engine.life) is engine:
            del self._engines[engine.role][engine.life]
            self._hide(engine)

    def report(self, endpoint: Endpoint, taken: RankTaken, now_s: float) -> None:
        """What its host has granted to all frontends together, and has read."""
        before, since_s = endpoint.observed, endpoint.read_at_s
        endpoint.report(taken)
        if ROLES[endpoint.engine.role].embeds:
            return  # another model, which says nothing of how quickly this one reads
        if not since_s:
            endpoint.read_at_s, endpoint.observed = now_s, taken
        elif taken.read_s > before.read_s:
            endpoint.read_at_s, endpoint.observed = now_s, taken
            self.on_observation(
                Read(
                    endpoint.id,
                    taken.read_prompts - before.read_prompts,
                    taken.read_tokens - before.read_tokens,
                    taken.read_area - before.read_area,
                    taken.read_s - before.read_s,
                    now_s - since_s,
                    taken.read_loaded - before.read_loaded,
                )
            )

    def open_slots(self, engine: Engine) -> None:
        """Its ranks have places in the index from now on, and hold nothing yet."""
        for endpoint in engine.endpoints:
            endpoint.slot = self._free_slots.pop() if self._free_slots else len(self._by_slot)
            self._by_slot[endpoint.slot] = endpoint
            if endpoint.caches:
                self._caching[engine.role].add(endpoint.slot)

    def close_slots(self, engine: Engine) -> None:
        """The index forgets them; others may get their numbers."""
        for endpoint in engine.endpoints:
            if self._by_slot.get(endpoint.slot) is endpoint:
                self._guesses.remove(endpoint.slot)
                self.index.clear(endpoint.slot)
                del self._by_slot[endpoint.slot]
                self._caching[engine.role].discard(endpoint.slot)
                self._free_slots.append(endpoint.slot)
                endpoint.slot, endpoint.tells_cache = -1, False

    def _guess(self, endpoint: Endpoint, path: array[int]) -> None:
        """What a rank that does not tell will have cached once it has read this."""
        if endpoint.tells_cache:
            self._guesses.remove(endpoint.slot)
        elif endpoint.caches and endpoint.slot >= 0:
            self._guesses.used(endpoint.slot, path, endpoint.capacity.kv_tokens // self.block_tokens)

    # told by reservations

    def on_released(self, reservation: Reservation, endpoint: Endpoint) -> None:
        self.places_taken -= 1
        if self._on_trial:
            self._end_trial(reservation, endpoint.engine)
        self.on_change()

    def on_has_read(self) -> None:
        self.on_change()

    def on_shared(self, reservation: Reservation) -> None:
        for endpoint in reservation.pair.endpoints:
            self._end_trial(reservation, endpoint.engine)
        self.on_change()

    # inner

    def _end_trial(self, reservation: Reservation, engine: Engine) -> None:
        if self._on_trial.get(engine) is not reservation:
            return
        del self._on_trial[engine]
        if self._engines[engine.role].get(engine.life) is engine:
            self._show(engine)

    def _show(self, engine: Engine) -> None:
        if engine not in self._on_trial:
            for endpoint in engine.endpoints:
                self._orders[engine.role].add(endpoint)

    def _hide(self, engine: Engine) -> None:
        for endpoint in engine.endpoints:
            if endpoint.order is not None:
                self._orders[engine.role].remove(endpoint)


def _may_take(endpoint: Endpoint, alone: bool) -> bool:
    """A connection that ends tells its legs before it tells us."""
    return endpoint.client.is_open and not (alone and not endpoint.engine.is_idle)
