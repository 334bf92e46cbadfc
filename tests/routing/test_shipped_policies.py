"""What the shipped policies choose: by turn, load, session, what is cached, and by what it would cost."""

from __future__ import annotations

import random
import sys
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share engines.py; they are not a package

from engines import PickingRouter, asked, make_engine, make_router, split

from disagg.errors import StartError
from disagg.kv_events.blocks import BlockHasher
from disagg.plane.ledger import Capacity
from disagg.plane.messages import RankTaken
from disagg.policy_names import SHIPPED, reads_prefixes
from disagg.registry.met import Met
from disagg.roles import Role
from disagg.routing.cost.prior import Prior
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.observations import Read, Stepped, Transferred
from disagg.routing.policies.sides import PickedBySide
from disagg.routing.policy import Surroundings, load_policy
from disagg.routing.router import Router

BLOCK = 64
HASHER = BlockHasher(b"s" * 32, BLOCK)


def router_of(name: str, *engines: Engine, seed: int = 1, prior: Prior | None = None) -> PickingRouter:
    surroundings = Surroundings(random.Random(seed), prior or Prior())
    router = make_router(*engines, policy=load_policy(name, surroundings))
    router.endpoints.block_tokens = BLOCK
    for engine in engines:
        router.endpoints.open_slots(engine)
        for endpoint in engine.endpoints:
            endpoint.tells_cache = True
    return router


def prompt(tokens: int, kind: int = 0) -> dict[str, Any]:
    ids = [kind * 1_000_000 + number for number in range(tokens)]
    return {"prompt_tokens": tokens, "prompt_ids": ids, "path": HASHER.path(ids)}


def holds(router: Router, endpoint: Endpoint, what: dict[str, Any], tokens: int = 1 << 30) -> None:
    path: array[int] = what["path"]
    router.endpoints.index.store(endpoint.slot, path[: tokens // BLOCK])


def waits(router: Router, endpoint: Endpoint, tokens: int, requests: int = 1) -> None:
    """So many prompt tokens lie before it unread."""
    router.endpoints.report(endpoint, RankTaken(requests, tokens, to_read=tokens), 1.0)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_policy_serves_pairs_engines_that_serve_alone_and_both(name: str) -> None:
    alone = [make_engine(f"alone-{number}#1", Role.AGGREGATED, number, 2) for number in range(2)]
    for engines in (split(2, 3, ranks=2), alone, [*split(2, 2), *alone]):
        router = router_of(name, *engines)
        for number in range(20):
            reservation = router.pick(asked(**prompt(300, number % 3), session=str(number)))
            assert reservation is not None
            assert type(reservation.reason).__name__ != "PolicyFailed", reservation.reason


@pytest.mark.parametrize("name", SHIPPED)
def test_no_policy_chooses_what_has_no_room_or_has_not_met(name: str) -> None:
    engines = split(2, 2, capacity=Capacity(1, 1 << 20, 1))
    router = router_of(name, *engines)
    first, second = (router.pick(asked(**prompt(300))) for _ in range(2))
    assert first is not None
    assert second is not None
    assert {first.pair.prefill, second.pair.prefill} == {each.endpoints[0] for each in engines[:2]}
    assert router.pick(asked(**prompt(300))) is None
    first.release()
    third = router.pick(asked(**prompt(300)))
    assert third is not None
    assert third.pair == first.pair


def test_round_robin_takes_each_in_its_turn() -> None:
    router = router_of("round_robin", *split(3, 2, ranks=2))
    places = [router.pick(asked()).pair for _ in range(12)]  # type: ignore[union-attr]
    assert Counter(pair.prefill.name for pair in places if pair.prefill) == Counter(
        {f"prefill-{n}#1/{r}": 2 for n in range(3) for r in range(2)}
    )
    assert [pair.decode.name for pair in places[:4]] == ["decode-0#1/0", "decode-0#1/1", "decode-1#1/0", "decode-1#1/1"]


def test_a_session_goes_where_it_was_and_every_frontend_agrees() -> None:
    one, other = (router_of("session", *split(4, 4), seed=seed) for seed in (1, 2))
    for number in range(30):
        places = []
        for router in (one, other, one):
            reservation = router.pick(asked(session=f"session {number}"))
            assert reservation is not None
            places.append(reservation.pair.name)
            reservation.release()
        assert len(set(places)) == 1


def test_a_session_is_left_for_a_rank_that_is_much_less_full() -> None:
    router = router_of("session", *split(2, 1))
    places = [router.pick(asked(session="s")).pair.prefill.name for _ in range(40)]  # type: ignore[union-attr]
    assert min(Counter(places).values()) > 10


@pytest.mark.parametrize("name", ["dynamo_kv", "cache_aware", "prefix_filter", "predicted"])
def test_a_prompt_goes_to_the_rank_that_has_it(name: str) -> None:
    router = router_of(name, *split(4, 2))
    warm = list(router.endpoints.of(Role.PREFILL))[2]
    holds(router, warm, prompt(6400))
    for _ in range(5):
        reservation = router.pick(asked(**prompt(6500)))
        assert reservation is not None
        assert reservation.pair.prefill is warm
        assert reservation.to_read == 100
        reservation.release()


def test_what_waits_longer_than_it_would_take_to_read_anew_is_read_anew() -> None:
    router = router_of("predicted", *split(4, 2))
    warm = list(router.endpoints.of(Role.PREFILL))[2]
    holds(router, warm, prompt(6400))
    waits(router, warm, 5000)
    assert router.pick(asked(**prompt(6500))).pair.prefill is warm  # type: ignore[union-attr]
    waits(router, warm, 50_000)
    assert router.pick(asked(**prompt(6500))).pair.prefill is not warm  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("busy", "wish", "waits_for_it"),
    [(0.0, {}, 0), (0.8, {}, 10_000), (0.95, {}, 60_000), (0.95, {"priority": 1}, 0), (0.95, {"hurries": True}, 0)],
)
def test_the_busier_ranks_are_the_longer_a_cache_is_waited_for_but_not_by_one_that_is_to_be_quick(
    busy: float, wish: dict[str, Any], waits_for_it: int
) -> None:
    """Each second that is not spent on reading it anew is spared to all who come later."""
    router = router_of("predicted", *split(4, 2))
    prefills = list(router.endpoints.of(Role.PREFILL))
    warm = prefills[2]
    holds(router, warm, prompt(6400))
    costs = router._policy.costs  # type: ignore[attr-defined]
    for endpoint in prefills:
        costs.busy.note(endpoint.id, 10 * busy, 10.0, costs._now_s())
    waited_for = 0
    for tokens in range(10_000, 100_000, 10_000):
        waits(router, warm, tokens)
        reservation = router.pick(asked(**prompt(6500), **wish))
        assert reservation is not None
        if reservation.pair.prefill is warm:
            waited_for = tokens
        reservation.release()
    assert waited_for == waits_for_it


def test_ranks_that_read_a_prompt_for_minutes_count_as_busy_meanwhile() -> None:
    now_s = [0.0]
    surroundings = Surroundings(random.Random(1), Prior(), now_s=lambda: now_s[0])
    policy = load_policy("predicted", surroundings)
    router = make_router(*split(2, 1), policy=policy)
    reading, idle = router.endpoints.of(Role.PREFILL)
    costs = policy.costs  # type: ignore[attr-defined]
    for endpoint in (reading, idle):
        costs.observe(Read(endpoint.id, 1, 1000, 5e5, 0.1, 1.0))
    waits(router, reading, 500_000)
    for second in range(1, 120):
        now_s[0] = float(second)
        router.consider(asked(1000))
    assert costs.busy.of(reading.id) == pytest.approx(1.0, abs=0.05)
    assert costs.busy.of(idle.id) == 0.0


def test_a_busy_rank_costs_nobody_else_the_affinity() -> None:
    router = router_of("predicted", *split(4, 2))
    prefills = sorted(router.endpoints.of(Role.PREFILL), key=lambda each: each.life)
    holds(router, prefills[0], prompt(6400, 1))
    holds(router, prefills[1], prompt(6400, 2))
    waits(router, prefills[0], 500_000, requests=50)
    assert router.pick(asked(**prompt(6500, 2))).pair.prefill is prefills[1]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["dynamo_kv", "predicted", "cache_aware", "prefix_filter"])
def test_one_client_at_a_time_spreads_what_nobody_has(name: str) -> None:
    """Each prompt is new, and is over before the next one comes; what was read stays cached."""
    router = router_of(name, *split(4, 1))
    places: Counter[str] = Counter()
    for kind in range(60):
        reservation = router.pick(asked(**prompt(640, kind)))
        assert reservation is not None
        assert reservation.pair.prefill is not None
        places[reservation.pair.prefill.name] += 1
        holds(router, reservation.pair.prefill, prompt(640, kind))
        reservation.release()
    assert len(places) == 4
    assert min(places.values()) >= 5, places


def test_a_client_that_expects_no_end_of_its_answer_changes_no_bucket_of_others() -> None:
    """It can put out no more than its max_tokens, whatever it says."""

    def buckets(hint: int) -> list[int]:
        router, random_, found = router_of("length_buckets", *split(8, 8)), random.Random(1), []
        for number in range(400):
            tokens, says = random_.randrange(10, 2000), random_.randrange(10, 1000)
            is_odd = not number % 50
            reservation = router.pick(asked(tokens, 1000, expected_tokens=hint if is_odd else says))
            assert reservation
            assert isinstance(reservation.reason, PickedBySide)
            assert reservation.reason.decode
            found.append(reservation.reason.decode["bucket"])
            reservation.release()
        return found

    assert buckets(2**31 - 1) == buckets(1000)
    assert set(buckets(1000)) == {0, 1, 2, 3}


def test_short_prompts_are_served_alone_and_long_ones_by_pairs_where_that_costs_less() -> None:
    """The one that serves alone decodes less than the pair's; but a long prompt would hold up all that it decodes."""
    alone = make_engine("alone-0#1", Role.AGGREGATED, 9)
    router = router_of("predicted", *split(1, 1), alone)
    router.endpoints.report(alone.endpoints[0], RankTaken(8, 8000), 1.0)
    router.endpoints.report(next(iter(router.endpoints.of(Role.DECODE))), RankTaken(40, 8000), 1.0)
    short, long = (router.pick(asked(**prompt(tokens, 5), new_tokens=100)) for tokens in (20, 20_000))
    assert short is not None
    assert long is not None
    assert short.pair.prefill is None
    assert long.pair.prefill is not None
    long.release()
    holds(router, alone.endpoints[0], prompt(20_000, 5))
    hot = router.pick(asked(**prompt(20_000, 5), new_tokens=100))
    assert hot is not None
    assert hot.pair.prefill is None


def test_the_kind_is_not_left_for_a_little() -> None:
    """Costs that go up and down a little around each other do not make requests of one length change sides."""
    alone = make_engine("alone-0#1", Role.AGGREGATED, 9)
    router = router_of("predicted", *split(1, 1), alone)
    decode = next(iter(router.endpoints.of(Role.DECODE)))
    kinds = []
    for number in range(20):
        for endpoint, more in ((alone.endpoints[0], number % 2), (decode, 1 - number % 2)):
            router.endpoints.report(endpoint, RankTaken(10 + more, 10_000), 1.0)
        reservation = router.pick(asked(**prompt(300), new_tokens=100))
        assert reservation is not None
        kinds.append(reservation.pair.prefill is None)
        reservation.release()
    assert len(set(kinds)) == 1


def test_all_prefill_or_all_decode_engines_gone_leaves_those_that_serve_alone() -> None:
    alone, (prefill, decode) = make_engine("alone-0#1", Role.AGGREGATED, 9), split(1, 1)
    router = router_of("predicted", prefill, decode, alone)
    long = prompt(50_000)
    router.endpoints.report(alone.endpoints[0], RankTaken(20, 200_000), 1.0)
    assert router.pick(asked(**long)).pair.prefill is not None  # type: ignore[union-attr]
    for gone in (prefill, decode):
        router.endpoints.remove(gone)
        assert router.pick(asked(**long)).pair.decode is alone.endpoints[0]  # type: ignore[union-attr]
        router.endpoints.add(gone)
    router.endpoints.remove(alone)
    assert router.pick(asked(**long)).pair.prefill is not None  # type: ignore[union-attr]


def test_it_learns_how_long_things_take() -> None:
    """The prior is ten times too quick; some fifty observations later the law is right within 10 %."""
    policy = load_policy("predicted")
    costs, noise = policy.costs, random.Random(3)  # type: ignore[attr-defined]
    engines = split(2, 1)
    rank, decode = engines[0].endpoints[0].id, engines[2].endpoints[0].id
    for _ in range(60):
        tokens, cached = noise.randint(50, 8000), noise.choice([0, 0, 512])
        area = (tokens + 2 * cached) * tokens / 2
        seconds = (0.05 + 5e-4 * tokens + 2e-9 * area) * noise.uniform(0.95, 1.05)
        policy.observe(Read(rank, 1, tokens, area, seconds, 1.0))  # type: ignore[attr-defined]
        legs, kv_tokens = noise.randint(1, 64), noise.randint(1000, 100_000)
        step_s = (0.03 + 4e-4 * legs + 3e-7 * kv_tokens) * noise.uniform(0.95, 1.05)
        policy.observe(Stepped(decode, legs, kv_tokens, step_s))  # type: ignore[attr-defined]
        policy.observe(Transferred(rank, decode, tokens, tokens * 1000, 0.01 + tokens * 1e-6))  # type: ignore[attr-defined]
    assert costs.read_s(rank, 4000, 0) == pytest.approx(0.05 + 2.0 + 2e-9 * 8e6, rel=0.1)
    assert costs.read_s(rank, 100, 0) == pytest.approx(0.1, rel=0.25)
    assert costs.step_s(decode, 32, 50_000) == pytest.approx(0.03 + 0.0128 + 0.015, rel=0.1)
    assert costs.transfer_s(4000) == pytest.approx(0.014, rel=0.15)


def test_a_rank_that_is_slower_than_the_others_is_found_out() -> None:
    policy, noise = load_policy("predicted"), random.Random(3)
    slow, quick = (engine.endpoints[0].id for engine in split(2, 0))
    for _ in range(80):
        tokens = noise.randint(500, 8000)
        for rank, factor in ((slow, 3.0), (quick, 1.0)):
            policy.observe(Read(rank, 1, tokens, tokens**2 / 2, factor * 1e-4 * tokens, 1.0))  # type: ignore[attr-defined]
    ratio = policy.costs.read_s(slow, 4000, 0) / policy.costs.read_s(quick, 4000, 0)  # type: ignore[attr-defined]
    assert 2.2 < ratio < 4.0


@pytest.mark.parametrize("prior_s", [0.1, 1.0, 10.0])
def test_a_prior_that_is_far_off_is_not_the_fault_of_the_rank_that_was_measured(prior_s: float) -> None:
    """As on real engines: one is measured a few times, and the other one not yet."""
    policy = load_policy("predicted", Surroundings(random.Random(1), Prior(read_token_s=prior_s / 500)))
    first, second = (engine.endpoints[0].id for engine in split(2, 0))
    for _ in range(8):
        policy.observe(Read(first, 1, 500, 500**2 / 2, 1.0, 1.0))  # type: ignore[attr-defined]
        assert policy.costs.read_s(first, 500, 0) == policy.costs.read_s(second, 500, 0)  # type: ignore[attr-defined]
    policy.observe(Read(second, 1, 500, 500**2 / 2, 1.0, 1.0))  # type: ignore[attr-defined]
    assert policy.costs.read_s(first, 500, 0) == policy.costs.read_s(second, 500, 0)  # type: ignore[attr-defined]


def test_a_slow_way_between_two_engines_is_avoided_and_the_engines_are_not() -> None:
    """As of two nodes: prefill-0 and decode-0 are on one, prefill-1 and decode-1 on the other; TCP between them."""
    router = router_of("predicted", *split(2, 2))
    costs, noise = router._policy.costs, random.Random(5)  # type: ignore[attr-defined]
    prefills, decodes = (list(router.endpoints.of(role)) for role in (Role.PREFILL, Role.DECODE))
    for _ in range(40):
        for here, prefill in enumerate(prefills):
            for there, decode in enumerate(decodes):
                kv_bytes = noise.randint(10, 400) * 1_000_000
                second = kv_bytes / (50e9 if here == there else 0.5e9)
                costs.observe(Transferred(prefill.id, decode.id, kv_bytes // 100_000, kv_bytes, 0.003 + second))
    pairs = set()
    for number in range(12):
        reservation = router.pick(asked(**prompt(4000, number)))
        assert reservation is not None
        pairs.add((reservation.pair.prefill.engine.id[-1], reservation.pair.decode.engine.id[-1]))  # type: ignore[union-attr]
        if number % 2:
            reservation.release()
    assert pairs == {("0", "0"), ("1", "1")}


def test_where_ways_differ_a_reader_still_finds_the_one_decode_that_it_has_met() -> None:
    engines = split(1, 40)
    router = router_of("predicted", *engines)
    router.endpoints.meet(Met([("prefill-0#1", "decode-39#1")]))
    for endpoint in list(router.endpoints.of(Role.DECODE)):
        if endpoint.life == "decode-39#1":
            router.endpoints.report(endpoint, RankTaken(5, 5000), 1.0)  # it is the dearest
    costs = router._policy.costs  # type: ignore[attr-defined]
    for receiver, seconds in ((1, 0.1), (2, 2.0)) * 20:
        reader, decode = (engines[number].endpoints[0].id for number in (0, receiver))
        costs.observe(Transferred(reader, decode, 1000, 10**8, seconds))
    assert costs.ways.differ
    reservation = router.pick(asked(**prompt(4000)))
    assert reservation is not None
    assert reservation.pair.decode.life == "decode-39#1"


def test_each_side_may_have_a_policy_of_its_own() -> None:
    router = router_of("prefill=dynamo_kv,decode=round_robin", *split(3, 3))
    warm = list(router.endpoints.of(Role.PREFILL))[1]
    holds(router, warm, prompt(6400))
    pairs = [router.pick(asked(**prompt(6500))).pair for _ in range(3)]  # type: ignore[union-attr]
    assert {pair.prefill for pair in pairs} == {warm}
    assert len({pair.decode for pair in pairs}) == 3


READ_PREFIXES = {"predicted", "session", "dynamo_kv", "cache_aware", "length_buckets", "prefix_filter"}
SIDES = {f"prefill={name}": name for name in SHIPPED if name != "predicted"}


@pytest.mark.parametrize(("policy", "name"), [*((name, name) for name in SHIPPED), *SIDES.items()])
def test_prompts_are_hashed_for_policies_and_sides_that_ask_for_it(policy: str, name: str) -> None:
    """One that asks and gets no path believes that nothing is cached anywhere."""
    router = Router(router_of(policy, *split(1, 1)).connections, load_policy(policy), HASHER)
    assert bool(router.path(range(1000), "")) is (name in READ_PREFIXES)


@pytest.mark.parametrize("name", ["prefill=predicted", "decode=nowhere:Policy"])
def test_what_cannot_choose_one_side_is_refused(name: str) -> None:
    with pytest.raises(StartError, match=r"routing\.policy"):
        load_policy(name)


def test_a_reason_says_what_each_side_went_by() -> None:
    reservation = router_of("dynamo_kv", *split(2, 2)).pick(asked(**prompt(300)))
    assert reservation is not None
    assert isinstance(reservation.reason, PickedBySide)
    assert reservation.reason.reader["cost_tokens"] == 300


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_known_by_name_which_policies_ask_what_is_cached(name: str) -> None:
    """So that engines need not tell it for nothing."""
    assert reads_prefixes(name) is bool(getattr(load_policy(name), "reads_prefixes", False))
    assert reads_prefixes(f"decode=least_loaded,prefill={name}") is reads_prefixes(name)
    assert reads_prefixes("my.own:Policy")
    sides = f"decode=least_loaded,prefill={name}"
    if name != "predicted":  # which chooses both sides as one
        assert make_router(*split(1, 1), policy=load_policy(sides)).reads_prefixes is reads_prefixes(name)
