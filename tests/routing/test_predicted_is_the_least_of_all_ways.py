"""What `predicted` chooses costs what docs/routing.md's formulas say, and nothing that it could have chosen costs less.

The plain form below looks at every way there is, one term at a time; the policy does not, and is to find the same.
"""

from __future__ import annotations

import random
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # tests share engines.py; they are not a package

from engines import PickingRouter, asked, make_engine, make_router

from disagg.kv_events.events import Tier
from disagg.plane.messages import RankTaken
from disagg.registry.met import Met
from disagg.roles import Role
from disagg.routing.cost.prior import Prior
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.observations import Read, Stepped, Transferred
from disagg.routing.policies.predicted import LeastCost, Predicted
from disagg.routing.policies.receivers import DECODES_BY_LANE, TIE, TIE_S
from disagg.routing.policy import Surroundings
from disagg.routing.view import RoutingView

BLOCK_TOKENS, BLOCKS = 16, 12


@dataclass
class Fleet:
    policy: Predicted
    router: PickingRouter
    met: Met


def fleet(seed: int, prefills: int, decodes: int, alone: int, *, places: bool, all_met: bool) -> Fleet:
    """Loads, queues, caches, and laws that some ranks and ways are known to differ from: all at random."""
    dice, policy = random.Random(seed), Predicted()
    policy.settle(Surroundings(random.Random(seed), Prior(), now_s=lambda: 1.0))
    engines = [
        make_engine(f"{role}-{number}#1", role, number, dice.randint(1, 2))
        for role, count in ((Role.PREFILL, prefills), (Role.DECODE, decodes), (Role.AGGREGATED, alone))
        for number in range(count)
    ]
    met = Met()
    for prefill in (engine for engine in engines if engine.role is Role.PREFILL):
        for decode in (engine for engine in engines if engine.role is Role.DECODE):
            if all_met or dice.random() < 0.6:
                met.add(prefill.life, decode.life)
    router = make_router(*engines, policy=policy, met=met)
    router.endpoints.block_tokens = BLOCK_TOKENS
    path = array("Q", range(1, 1 + BLOCKS))
    for engine in engines:
        engine.place = (f"node {dice.randrange(3)}",) if places else ()
        router.endpoints.open_slots(engine)
        for rank in engine.endpoints:
            rank.tells_cache = True
            requests = dice.choice((0, 0, 1, 5))
            queued = dice.choice((0, 0, 200, 5000)) if engine.role is not Role.DECODE else 0
            taken = RankTaken(requests, requests * dice.randint(10, 4000), to_read=queued)
            router.endpoints.report(rank, taken, 1.0)
            for tier in (Tier.DEVICE, Tier.HOST):
                if dice.random() < 0.3:
                    router.endpoints.index.store(rank.slot, path[: dice.randint(1, BLOCKS)], tier)
    measure(policy, engines, dice)
    return Fleet(policy, router, met)


def measure(policy: Predicted, engines: list[Engine], dice: random.Random) -> None:
    for _ in range(dice.choice((0, 20))):
        for engine in engines:
            for rank in engine.endpoints:
                slow = 1 + 2 * (engine.number % 2)
                policy.observe(Read(rank.id, 1, 1000, 5e5, 0.1 * slow, 1.0))
                policy.observe(Stepped(rank.id, 4, 4000, 0.01 * slow))
        for one in engines:
            for other in engines:
                if one.role is Role.PREFILL and other.role is Role.DECODE and one.place:
                    shared = "node" if one.place == other.place else ""
                    ends = one.endpoints[0].id, other.endpoints[0].id
                    policy.observe(Transferred(*ends, 1000, 10**8, 0.01 if shared else 0.2, shared))


class Plain:
    """docs/routing.md, "The cost model"."""

    def __init__(self, fleet: Fleet, request: RoutingView) -> None:
        self.endpoints, self.costs, self.request, self.met = (
            fleet.router.endpoints,
            fleet.policy.costs,
            request,
            fleet.met,
        )
        self.cached = self.endpoints.cached(request)
        self.busy = 0.0 if request.priority > 0 else min(0.95, self.costs.busy.mean)

    def read_s(self, rank: Endpoint) -> float:
        on_device, anywhere = self.cached.of(rank)
        has = min(anywhere, self.request.prompt_tokens - 1)
        return self.costs.read_s(rank.id, self.request.prompt_tokens - has, has, max(0, has - on_device))

    def reading_s(self, rank: Endpoint) -> float:
        later = 1 + self.busy / (2 * (1 - self.busy))
        return self.costs.drain_s(rank.id, rank.queued_tokens) + self.read_s(rank) * later

    def decoding_s(self, rank: Endpoint) -> float:
        costs, prompt, (n, k) = self.costs, self.request.prompt_tokens, rank.load
        e = min(self.request.new_tokens, costs.output_tokens)
        own_s = e * costs.step_s(rank.id, n + 1, k + prompt + e / 2)
        slower_s = costs.step_s(rank.id, n + 1, k + prompt) - costs.step_s(rank.id, n, k)
        return own_s + n * e / 2 * slower_s

    def transfer_s(self, prefill: Endpoint, decode: Endpoint) -> float:
        moved = self.request.prompt_tokens - self.cached.of(decode)[0]
        return self.costs.transfer_s(moved) * self.costs.ways.of(prefill.engine, decode.engine)

    def ways(self) -> dict[str, float]:
        """The cost of each, by its name."""
        of = self.endpoints.of
        found = {
            f"{prefill.name} + {decode.name}": self.reading_s(prefill)
            + self.transfer_s(prefill, decode)
            + self.decoding_s(decode)
            for prefill in of(Role.PREFILL)
            for decode in of(Role.DECODE)
            if (prefill.life, decode.life) in self.met
        }
        for rank in of(Role.AGGREGATED):
            left = 1 - min(0.95, self.costs.busy.of(rank.id))
            stall_s = rank.load[0] * self.read_s(rank)
            found[rank.name] = self.reading_s(rank) + stall_s + self.decoding_s(rank) / left
        return found


def equal(cost_s: float) -> float:
    """What counts as equal to this: of a reader, and of its decode."""
    return (cost_s * (1 + TIE) + TIE_S) * (1 + TIE) + TIE_S


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    prefills=st.integers(1, 5),
    decodes=st.integers(1, DECODES_BY_LANE // 2),
    alone=st.integers(0, 3),
    places=st.booleans(),
    all_met=st.booleans(),
    tokens=st.integers(1, BLOCKS * BLOCK_TOKENS),
    priority=st.integers(0, 1),
)
def test_the_choice_is_the_least_of_all_ways_and_costs_what_the_formulas_say(
    seed: int, prefills: int, decodes: int, alone: int, places: bool, all_met: bool, tokens: int, priority: int
) -> None:
    made = fleet(seed, prefills, decodes, alone, places=places, all_met=all_met)
    path = array("Q", range(1, 1 + tokens // BLOCK_TOKENS))
    request = asked(tokens, 50, path=path, priority=priority)
    ways = Plain(made, request).ways()
    choice = made.router.consider(request)
    if choice is None:
        assert not ways
        return
    reason = choice.reason
    assert isinstance(reason, LeastCost)
    assert abs(reason.cost_ms - ways[choice.pair.name] * 1e3) < 0.002
    assert ways[choice.pair.name] <= equal(min(ways.values())) + 1e-9
    reader = choice.pair.reader.name
    others = [cost_s for name, cost_s in ways.items() if name.split(" + ")[0] != reader]
    if not reason.next_best:
        assert not others
    elif not alone:
        assert abs(reason.next_cost_ms - ways[reason.next_best] * 1e3) < 0.002
        assert ways[reason.next_best] <= equal(min(others)) + 1e-9


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_of_more_ranks_than_are_looked_at_it_finds_the_one_that_has_the_prompt(seed: int) -> None:
    """It is the fullest of 60: none of the least loaded."""
    made = fleet(seed, 40, 3, 0, places=False, all_met=True)
    ranks = list(made.router.endpoints.of(Role.PREFILL))
    path = array("Q", range(1001, 1401))
    warm = random.Random(seed).choice(ranks)
    made.router.endpoints.index.store(warm.slot, path)
    made.router.endpoints.report(warm, RankTaken(50, 50_000), 1.0)
    choice = made.router.consider(asked(len(path) * BLOCK_TOKENS + 1, 5, path=path))
    assert choice is not None
    assert choice.pair.prefill is warm
    assert choice.cached_tokens == len(path) * BLOCK_TOKENS


def test_a_reader_takes_the_cheapest_decode_that_it_has_met_whatever_others_have_met() -> None:
    """The first one has met the loaded decode alone, and has a queue; the other one has met both."""
    engines = [make_engine(f"prefill-{n}#1", Role.PREFILL, n) for n in range(2)]
    engines += [make_engine(f"decode-{n}#1", Role.DECODE, 2 + n) for n in range(2)]
    pairs = [("prefill-0#1", "decode-1#1"), ("prefill-1#1", "decode-0#1"), ("prefill-1#1", "decode-1#1")]
    router = make_router(*engines, policy=Predicted(), met=Met(pairs))
    first, second, _, loaded = (engine.endpoints[0] for engine in engines)
    router.endpoints.report(first, RankTaken(0, 0, to_read=50_000), 1.0)
    router.endpoints.report(second, RankTaken(1, 100), 1.0)
    router.endpoints.report(loaded, RankTaken(40, 400_000), 1.0)
    choice = router.consider(asked(100, 50))
    assert choice is not None
    assert choice.pair.name == "prefill-1#1/0 + decode-0#1/0"
