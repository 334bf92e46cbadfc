"""Whether a key that floods holds up another one, and who goes next: the real admission before simulated engines.

    python -m benchmarks.fairness TRACE... [--loads 0.9,1.2,2] [--seeds 5] [--requests 2000]
                                           [--policies predicted,least_loaded]

Way:   the requests of a trace, one in 21 of which are of the key `other`, the rest of `flood` -> the same again without
       the flood; and one in 50 with a high priority -> a table of each trace. Virtual time, 8 prefill and 8 decode
       engines of 4 dp ranks each
Out:   TTFT of `other` alone and beside the flood, over all seeds together; of the high priorities and of the rest, and
       how many of lower priority were admitted while one of high priority waited, in all and on the rank that it got
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import mean

from msgspec import structs

from benchmarks.policies import simulation_of
from disagg.replay.compare import policy_of
from disagg.replay.measures import WARM_SHARE
from disagg.replay.simulate import Simulation
from disagg.replay.virtual.served import Served
from disagg.telemetry.quantile import quantile

FLOOD = 20  # requests for each one of `other`
HIGH, HIGH_SHARE = 10, 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--loads", default="0.9,1.2,2", help="shares of what least_loaded carries")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--policies", default="predicted,least_loaded", help="comma-separated")
    options = parser.parse_args()
    for path in options.traces:
        simulation = simulation_of(path, options.requests)
        capacity = simulation.capacity()
        print(f"\n# {path.name}: carries {capacity:.3g} requests/s with least_loaded. TTFT mean, p50, p99 in s")
        for load in options.loads.split(","):
            for policy in options.policies.split(","):
                for line in told(simulation, policy, float(load) * capacity, range(1, options.seeds + 1)):
                    print(f"{load:>4} {policy:<12} {line}", flush=True)


def told(simulation: Simulation, policy: str, rate: float, seeds: Sequence[int]) -> Iterator[str]:
    alone, beside = [], []
    high, usual, passed = [], [], []
    for seed in seeds:
        make = partial(policy_of, policy, seed)
        of_other = partial(owned, seed)
        first = int(WARM_SHARE * len(simulation.plan(rate, seed).requests))  # the others warm the caches up
        _, run = simulation.play(
            make, rate, seed, change=lambda every, of=of_other: [s for s in of(every) if is_other(s)]
        )
        alone += [served for served in run.served if served.number >= first]
        _, run = simulation.play(make, rate, seed, change=of_other)
        beside += [served for served in run.served if served.number >= first and is_other(served)]
        _, run = simulation.play(make, rate, seed, change=partial(ranked, seed))
        every = [served for served in run.served if served.number >= first]
        high += [served for served in every if served.wishes.priority]
        usual += [served for served in every if not served.wishes.priority]
        passed += [passed_by(served, run.served) for served in every if served.wishes.priority]
    yield f"other, alone           {line_of(alone)}"
    p99 = [quantile(sorted(map(ttft_s, every)), 0.99) for every in (alone, beside)]
    yield f"other, beside a flood  {line_of(beside)}  p99 {p99[1] / p99[0]:.2f} times as long"
    by, there = (mean(counts) for counts in zip(*passed, strict=True))
    yield f"of high priority       {line_of(high)}  passed by {by:.2f}, on their ranks by {there:.2f}"
    yield f"the others             {line_of(usual)}"


def owned(seed: int, arrivals: Sequence[Served]) -> Sequence[Served]:
    random = Random(seed)
    for served in arrivals:
        served.owner = b"other" if random.random() * (FLOOD + 1) < 1 else b"flood"
    return arrivals


def ranked(seed: int, arrivals: Sequence[Served]) -> Sequence[Served]:
    random = Random(seed)
    for served in arrivals:
        if random.random() < HIGH_SHARE:
            served.wishes = structs.replace(served.wishes, priority=HIGH)
    return arrivals


def is_other(served: Served) -> bool:
    return served.owner == b"other"


def passed_by(served: Served, every: Sequence[Served]) -> tuple[int, int]:
    """Those of lower priority that were admitted while it waited, and of these those that went to its rank."""
    before = [
        other
        for other in every
        if served.due_s < other.admitted_s < served.admitted_s and other.wishes.priority < served.wishes.priority
    ]
    return len(before), sum(other.read_on == served.read_on for other in before)


def ttft_s(served: Served) -> float:
    return served.first_s - served.due_s


def line_of(every: Sequence[Served]) -> str:
    ordered = sorted(map(ttft_s, every))
    return f"{mean(ordered):8.3f} {quantile(ordered, 0.5):8.3f} {quantile(ordered, 0.99):8.3f}  n={len(ordered)}"


if __name__ == "__main__":
    main()
