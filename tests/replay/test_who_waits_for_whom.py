"""Fairness between keys, and priorities: the real admission before simulated engines that have too much to do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

from msgspec import structs

from disagg.replay.compare import policy_of
from disagg.replay.measures import Slo
from disagg.replay.simulate import Setting, Simulation
from disagg.replay.traces.read import read_trace
from disagg.replay.virtual.served import Served
from disagg.replay.virtual.world import Pool, Run
from disagg.roles import Role
from disagg.simulated_engine.model import Model
from disagg.telemetry.quantile import quantile

TRACE = Path(__file__).parent / "data" / "mooncake-200.jsonl.gz"
TIMES = {"prefill_token_s": 2e-5, "prefill_attention_s": 1e-9, "step_leg_s": 1e-5, "step_context_s": 3e-8}
SIZES = {"kv_tokens": 400_000, "page_size": 64, "chunk_tokens": 8192, "kv_bytes_per_token": 100_000}
POOLS = [
    Pool(Model(role=role, ranks=2, step_s=0.005, transfer_bytes_per_s=1e10, **TIMES, **SIZES), 2)  # type: ignore[arg-type]
    for role in (Role.PREFILL, Role.DECODE)
]
SIMULATION = Simulation(Setting(read_trace(TRACE), POOLS, 200, 1, Slo(2.0, 0.05)))
OVERLOAD = 20.0  # requests a second, some twice as many as they carry
SEEDS = range(1, 6)


def serve(seed: int, rate: float, change: object) -> Run:
    return SIMULATION.play(partial(policy_of, "predicted", seed), rate, seed, change=change)[1]  # type: ignore[arg-type]


def ttft_s(every: Sequence[Served]) -> list[float]:
    return sorted(served.first_s - served.due_s for served in every)


def with_owners(seed: int, arrivals: Sequence[Served]) -> Sequence[Served]:
    random = Random(seed)
    for served in arrivals:
        served.owner = b"flood" if random.randrange(21) else b"other"
    return arrivals


def of_other(seed: int, arrivals: Sequence[Served]) -> Sequence[Served]:
    return [served for served in with_owners(seed, arrivals) if served.owner == b"other"]


def test_a_key_that_floods_twenty_times_as_much_does_not_double_anothers_slowest_first_tokens() -> None:
    alone: list[Served] = []
    beside: list[Served] = []
    flood: list[Served] = []
    for seed in SEEDS:
        alone += serve(seed, OVERLOAD, partial(of_other, seed)).served
        for served in serve(seed, OVERLOAD, partial(with_owners, seed)).served:
            (beside if served.owner == b"other" else flood).append(served)
    assert len(alone) == len(beside) > 30
    lone_s, beside_s, flood_s = (quantile(ttft_s(every), 0.99) for every in (alone, beside, flood))
    assert beside_s < 2 * lone_s
    assert flood_s > 2 * lone_s, "nothing had to wait: this shows nothing"


def with_priorities(seed: int, arrivals: Sequence[Served]) -> Sequence[Served]:
    random = Random(seed)
    for served in arrivals:
        if random.random() < 0.05:
            served.wishes = structs.replace(served.wishes, priority=10)
    return arrivals


def test_nobody_of_a_lower_priority_goes_where_one_of_a_high_priority_goes_before_it() -> None:
    passed = overtaken = high = 0
    for seed in SEEDS:
        every = serve(seed, OVERLOAD, partial(with_priorities, seed)).served
        for served in every:
            if not served.wishes.priority:
                continue
            high += 1
            while_it_waited = [
                other
                for other in every
                if not other.wishes.priority and served.due_s < other.admitted_s < served.admitted_s
            ]
            passed += len(while_it_waited)
            overtaken += any(other.read_on == served.read_on for other in while_it_waited)
    assert high > 30
    assert 20 * overtaken < high, "it was bound to another rank then, and moved since"
    assert 10 * passed < high, "it is admitted next; hardly ever does another rank suit it better"
