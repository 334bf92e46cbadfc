"""What a replay came to, in numbers. The first part of the requests warms the caches up and is not counted.

In:    Answered requests, real or simulated; gaps between tokens; what each rank did
Out:   Measures of one policy at one load with one seed, and the median of several seeds with its spread
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import mean, median
from typing import Any

from disagg.telemetry.quantile import quantile

WARM_SHARE = 0.2  # of the requests


@dataclass(frozen=True, slots=True)
class Answered:
    """Seconds of one clock."""

    due_s: float
    first_s: float
    ended_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    ideal_tokens: int

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.due_s

    @property
    def itl_s(self) -> float:
        """Mean of its gaps; 0 for a single token."""
        return (self.ended_s - self.first_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Slo:
    """A request meets it whose first token, and whose mean gap between tokens, come in time."""

    ttft_s: float
    itl_s: float

    def is_met(self, answered: Answered) -> bool:
        return answered.ttft_s <= self.ttft_s and answered.itl_s <= self.itl_s


@dataclass(frozen=True, slots=True)
class Measures:
    """Imbalance: the busiest rank's work over the mean of its role's; 1 is none. `hit_rate` and `ideal_hit_rate`:
    prompt tokens that were cached, and that an endless cache would have had, over all. `failed`: requests without an
    answer. `at_fault`: choices that LeastLoaded made in the policy's place."""

    requests: int
    failed: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    good_share: float
    goodput: float  # of the requests that come in a second, those that meet the SLO
    hit_rate: float
    ideal_hit_rate: float
    read_imbalance: float
    decode_imbalance: float
    refusals: int
    at_fault: int
    choice_p50_us: float
    choice_p99_us: float


@dataclass(frozen=True, slots=True)
class Told:
    """What only a simulation knows of its inside. Work in seconds, a rank each."""

    read_s: Sequence[float] = ()
    decode_s: Sequence[float] = ()
    refusals: int = 0
    at_fault: int = 0
    choices_us: Sequence[float] = ()


def measures(
    every: Sequence[Answered], gaps: Sequence[tuple[float, int]], slo: Slo, failed: int, told: Told
) -> Measures:
    """`gaps`: (seconds between two tokens of a stream, how many such)."""
    by_arrival = sorted(every, key=lambda each: each.due_s)
    counted = by_arrival[int(len(by_arrival) * WARM_SHARE) :]
    ttft_s = sorted(each.ttft_s for each in counted)
    prompts = sum(each.prompt_tokens for each in counted) or 1
    good = sum(map(slo.is_met, counted))
    lasted_s = counted[-1].due_s - counted[0].due_s if counted else 0.0
    itl_s = _weighed(gaps, (0.5, 0.99))
    choices_us = sorted(told.choices_us)
    return Measures(
        requests=len(counted),
        failed=failed,
        ttft_mean_s=mean(ttft_s) if ttft_s else 0.0,
        ttft_p50_s=quantile(ttft_s, 0.5),
        ttft_p99_s=quantile(ttft_s, 0.99),
        itl_p50_s=itl_s[0],
        itl_p99_s=itl_s[1],
        good_share=good / max(1, len(counted) + failed),
        goodput=good / lasted_s if lasted_s else 0.0,
        hit_rate=sum(each.cached_tokens for each in counted) / prompts,
        ideal_hit_rate=sum(each.ideal_tokens for each in counted) / prompts,
        read_imbalance=_imbalance(told.read_s),
        decode_imbalance=_imbalance(told.decode_s),
        refusals=told.refusals,
        at_fault=told.at_fault,
        choice_p50_us=quantile(choices_us, 0.5),
        choice_p99_us=quantile(choices_us, 0.99),
    )


def over_seeds(each: Sequence[Measures], of: Callable[[Sequence[float]], float] = median) -> Measures:
    """Field by field."""
    values = [asdict(one) for one in each]
    found: dict[str, Any] = {field.name: of([value[field.name] for value in values]) for field in fields(Measures)}
    return Measures(**found)


def _weighed(gaps: Sequence[tuple[float, int]], shares: Sequence[float]) -> list[float]:
    """For each of `shares`, in rising order, the least gap that so many of all do not exceed."""
    ordered = sorted(gaps)
    total, passed = sum(count for _, count in ordered), 0
    found: list[float] = []
    wanted = [share * total for share in shares]
    for seconds, count in ordered:
        passed += count
        while len(found) < len(wanted) and passed >= wanted[len(found)]:
            found.append(seconds)
    return found + [0.0] * (len(shares) - len(found))


def _imbalance(work: Sequence[float]) -> float:
    return max(work) / mean(work) if work and any(work) else 1.0
