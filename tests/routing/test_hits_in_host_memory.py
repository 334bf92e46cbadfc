"""What a rank has in its host's memory alone it has to load: that costs time, less than reading it anew."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share engines.py; they are not a package

from engines import PickingRouter, asked, make_engine, make_router

from disagg.kv_events.blocks import BlockHasher
from disagg.kv_events.events import Tier
from disagg.plane.messages import RankTaken
from disagg.roles import Role
from disagg.routing.cost.costs import Costs
from disagg.routing.cost.prior import Prior
from disagg.routing.endpoints import RankId
from disagg.routing.observations import Read
from disagg.routing.policies.predicted import LeastCost
from disagg.routing.policy import Surroundings, load_policy

BLOCK, TOKENS = 64, 6400
IDS = list(range(TOKENS + 10))
PATH = BlockHasher(b"s" * 32, BLOCK).path(IDS)
RANK = RankId("prefill-0", "prefill-0#1", 0)


def router_with(*tiers: Tier | None, prior: Prior | None = None) -> PickingRouter:
    """Engines that serve alone; each has the prompt in that tier."""
    engines = [make_engine(f"alone-{number}#1", Role.AGGREGATED, number) for number in range(len(tiers))]
    policy = load_policy("predicted", Surroundings(random.Random(1), prior or Prior()))
    router = make_router(*engines, policy=policy)
    router.endpoints.block_tokens = BLOCK
    for engine, tier in zip(engines, tiers, strict=True):
        router.endpoints.open_slots(engine)
        engine.endpoints[0].tells_cache = True
        if tier is not None:
            router.endpoints.index.store(engine.endpoints[0].slot, PATH, tier)
    return router


def chosen(router: PickingRouter) -> tuple[str, LeastCost]:
    reservation = router.pick(asked(prompt_tokens=len(IDS), prompt_ids=IDS, path=PATH))
    assert reservation is not None
    assert isinstance(reservation.reason, LeastCost)
    return reservation.pair.decode.engine.id, reservation.reason


def test_of_two_that_have_it_the_one_that_need_not_load_it_is_taken() -> None:
    where, reason = chosen(router_with(Tier.HOST, Tier.DEVICE, Tier.HOST))
    assert (where, reason.cached_tokens) == ("alone-1", TOKENS)


def test_one_that_has_to_load_it_is_taken_before_one_that_would_have_to_read_it() -> None:
    prior = Prior()
    router = router_with(None, Tier.HOST)
    where, reason = chosen(router)
    assert (where, reason.cached_tokens) == ("alone-1", TOKENS)
    costs = router._policy.costs  # type: ignore[attr-defined]
    on_device_s = costs.reading_s(10, TOKENS)
    assert reason.read_ms == pytest.approx((on_device_s + TOKENS * prior.read_loaded_s) * 1e3, rel=1e-3)


def test_where_loading_takes_longer_than_reading_it_is_read() -> None:
    slow = Prior(read_loaded_s=2 * Prior().read_token_s)
    assert chosen(router_with(None, Tier.HOST, prior=slow))[0] == "alone-0"


def test_how_long_loading_takes_is_learnt_from_what_was_read_beside_it() -> None:
    costs, noise = Costs(Prior()), random.Random(2)
    for _ in range(400):
        tokens, loaded = noise.randrange(10, 4000), noise.choice((0, 0, noise.randrange(1000, 30_000)))
        area = tokens * (tokens + 2 * loaded) / 2
        seconds = (0.01 + 5e-5 * tokens + 2e-5 * loaded) * noise.uniform(0.95, 1.05)
        costs.observe(Read(RANK, 1, tokens, area, seconds, 1.0, loaded))
    assert costs.reading_s(100, 20_000, 20_000) == pytest.approx(0.01 + 0.005 + 0.4, rel=0.15)
    assert costs.reading_s(2000, 0) == pytest.approx(0.11, rel=0.1)


def test_hosts_reports_say_how_much_was_loaded() -> None:
    seen: list[Read] = []
    router = router_with(None)
    router.endpoints.on_observation = seen.append  # type: ignore[assignment]
    (endpoint,) = router.endpoints.of(Role.AGGREGATED)
    for at_s, loaded in enumerate((0, 500, 1200)):
        taken = RankTaken(0, 0, read_prompts=at_s, read_tokens=100 * at_s, read_s=0.1 * at_s, read_loaded=loaded)
        router.endpoints.report(endpoint, taken, at_s + 1.0)
    assert [each.loaded for each in seen] == [500, 700]
