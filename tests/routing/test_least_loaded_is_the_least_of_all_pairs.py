"""Whatever has happened before, LeastLoaded's choice has the score that a look at every pair finds; and it is quick."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share engines.py; they are not a package

from engines import Client, asked, make_engine, make_router, split

from disagg.plane.ledger import Capacity, fits, kv_tokens_needed, tokens_to_set_aside
from disagg.plane.messages import RankTaken
from disagg.registry.met import Met
from disagg.roles import Role
from disagg.routing.endpoints import UNBOUNDED, Endpoint, Engine
from disagg.routing.load import Endpoints
from disagg.routing.policies.least_loaded import Weighed
from disagg.routing.reservation import Reservation
from disagg.routing.view import RoutingView

Score = tuple[int, ...]
STEPS = 120


class Reference:
    """The same deployment, and the plainest way to choose: every pair is looked at."""

    def __init__(self, engines: list[Engine], met: Met) -> None:
        self.engines, self.met = engines, met
        self.ready = set(engines)
        self.alone: dict[Engine, Reservation] = {}

    def load(self, endpoint: Endpoint) -> tuple[int, int]:
        others = endpoint.others
        return endpoint.requests + others.requests, endpoint.kv_tokens + others.kv_tokens

    def usable(self, role: Role) -> list[Engine]:
        return [each for each in self.engines if each.role is role and each in self.ready and _client(each).is_up]

    def candidates(self, role: Role, request: RoutingView) -> list[tuple[Score, Endpoint]]:
        new_tokens = 1 if role is Role.PREFILL else request.new_tokens
        found = []
        for engine in self.usable(role):
            is_busy = any(self.load(endpoint)[0] for endpoint in engine.endpoints)
            if engine in self.alone or (role in request.alone_on and is_busy):
                continue
            for endpoint in engine.endpoints:
                load, capacity = self.load(endpoint), endpoint.capacity
                if endpoint.refused_tokens <= tokens_to_set_aside(request.prompt_tokens, new_tokens):
                    continue
                if fits(*load, kv_tokens_needed(request.prompt_tokens, new_tokens, capacity.page_size), capacity):
                    found.append(((int(engine.life in request.avoid), *load), endpoint))
        return found

    def scores(self, request: RoutingView) -> dict[tuple[Endpoint | None, Endpoint], Score]:
        if alone := self.candidates(Role.AGGREGATED, request):
            return {(None, endpoint): score for score, endpoint in alone}
        pairs = product(self.candidates(Role.PREFILL, request), self.candidates(Role.DECODE, request))
        return {
            (prefill, decode): tuple(a + b for a, b in zip(one, other, strict=True))
            for (one, prefill), (other, decode) in pairs
            if (prefill.life, decode.life) in self.met
        }

    def is_ready(self) -> bool:
        ready = [each for each in self.engines if each in self.ready]
        return any(
            one.role is Role.AGGREGATED or (one.life, other.life) in self.met for one, other in product(ready, ready)
        )


def _client(engine: Engine) -> Client:
    client = engine.endpoints[0].client
    assert isinstance(client, Client)
    return client


def _deployment(random: Random) -> tuple[list[Engine], Met]:
    def capacity() -> Capacity:
        return Capacity(
            random.choice([1, 2, 4, UNBOUNDED]), random.choice([64, 256, 1024, UNBOUNDED]), random.choice([1, 16, 64])
        )

    density, most = random.choice([0.05, 0.2, 0.5, 1.0]), random.choice([2, 6, 20])
    lives = [f"prefill-{number}#1" for number in range(random.randint(1, most))]
    engines = [make_engine(life, Role.PREFILL, 0, random.randint(1, 4), capacity()) for life in lives]
    met = Met()
    for number in range(random.randint(1, most)):
        engines.append(make_engine(f"decode-{number}#1", Role.DECODE, 0, random.randint(1, 4), capacity()))
        for life in [*lives, "gone#3"]:
            if random.random() < density:
                met.add(life, f"decode-{number}#1")
    if random.random() < 0.2:
        engines += [make_engine(f"together-{n}#1", Role.AGGREGATED, 0, 2, capacity=capacity()) for n in range(2)]
    random.shuffle(engines)
    for number, engine in enumerate(engines):
        engine.number = number
    return engines, met


def _request(random: Random, engines: list[Engine]) -> RoutingView:
    avoid = {each.life for each in random.sample(engines, min(len(engines), random.choice([0, 0, 0, 1, 3])))}
    alone_on = random.choice([(), (), (), (Role.DECODE,), (Role.PREFILL,), tuple(Role)])
    return asked(random.choice([1, 40, 150, 900]), random.choice([1, 8, 300, 5000]), avoid=avoid, alone_on={*alone_on})


@pytest.mark.parametrize("seed", range(60))
def test_the_choice_is_as_good_as_the_best_of_all_pairs(seed: int) -> None:
    random = Random(seed)
    engines, met = _deployment(random)
    router, reference, running = make_router(*engines, met=met), Reference(engines, met), list[Reservation]()
    for _ in range(STEPS):
        _something_happens(random, reference, router.endpoints, running)
        assert router.is_ready() == reference.is_ready()
        request = _request(random, engines)
        scores = reference.scores(request)
        reservation = router.pick(request)
        if reservation is None:
            assert not scores
            continue
        running.append(reservation)
        chosen = scores[reservation.pair.prefill, reservation.pair.decode]
        assert chosen == min(scores.values())
        assert reservation.reason == Weighed(*chosen)
        for endpoint in reservation.pair.endpoints:
            if endpoint.engine.role in request.alone_on:
                reference.alone[endpoint.engine] = reservation
    for reservation in running:
        reservation.release()
    assert router.endpoints.places_taken == 0
    assert not any(endpoint.requests or endpoint.kv_tokens for engine in engines for endpoint in engine.endpoints)


def _something_happens(random: Random, reference: Reference, endpoints: Endpoints, running: list[Reservation]) -> None:
    engine = random.choice(reference.engines)
    endpoint = random.choice(engine.endpoints)
    match random.randrange(9):
        case 0 | 1 | 2 if running:
            reservation = random.choice(running)
            leg = random.choice(reservation.held)
            reservation.release_leg(leg)
            if reference.alone.get(leg.engine) is reservation:
                del reference.alone[leg.engine]
            if not reservation.held:
                running.remove(reservation)
        case 3:
            endpoint.report(RankTaken(random.randint(0, 3), random.choice([0, 64, 500])))
        case 4 if random.random() < 0.3:
            endpoint.on_refused(random.choice([1, 14, 400]))
        case 5:
            endpoints.remove(engine)
            reference.ready.discard(engine)
        case 6:
            for each in reference.engines:
                endpoints.add(each)
            reference.ready = set(reference.engines)
        case 7:
            _client(engine).is_up = random.random() < 0.8
        case 8 if running:
            reservation = random.choice(running)
            reservation.share()
            for endpoint in reservation.pair.endpoints:
                if reference.alone.get(endpoint.engine) is reservation:
                    del reference.alone[endpoint.engine]
        case _ if engine.role is Role.DECODE:
            prefills = [each.life for each in reference.engines if each.role is Role.PREFILL]
            reference.met.forget(engine.life)
            for life in random.sample(prefills, random.randint(0, len(prefills))):
                reference.met.add(life, engine.life)
            endpoints.meet(reference.met)


@pytest.mark.parametrize(("engines", "ranks"), [(1, 1), (125, 4), (500, 1)])
def test_a_pick_looks_at_a_handful_of_endpoints_however_many_there_are(engines: int, ranks: int) -> None:
    deployment = split(engines, engines, ranks)
    router = make_router(*deployment)
    for _ in range(3 * engines):
        assert router.pick(asked())
    before = sum(_client(engine).looks for engine in deployment)
    assert router.pick(asked())
    assert sum(_client(engine).looks for engine in deployment) - before <= 8


def test_where_few_have_met_only_those_are_looked_at() -> None:
    """Each decode engine has met one prefill engine, a different one."""
    deployment = split(200, 200)
    met = Met((f"prefill-{number}#1", f"decode-{number}#1") for number in range(200))
    router = make_router(*deployment, met=met)
    for _ in range(400):
        assert router.pick(asked())
    before = sum(_client(engine).looks for engine in deployment)
    assert router.pick(asked())
    assert sum(_client(engine).looks for engine in deployment) - before <= 3 * len(deployment)
