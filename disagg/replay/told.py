"""What a comparison says: lines of a table, JSON, a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from disagg.chart import bars
from disagg.replay.compare import Load, Row
from disagg.replay.measures import Measures, over_seeds
from disagg.replay.simulate import Setting

HEAD = (
    f"{'policy':<16} {'TTFT mean':>10} {'p50':>8} {'p99':>8} {'ITL p50':>8} {'p99':>8} {'good':>6} {'good/s':>8} "
    f"{'hits':>6} {'uneven':>12} {'choice us':>12}"
)
NOTES = (
    "seconds, ITL in ms; good: requests within the SLO, and how many a second; hits: prompt tokens found cached; "
    "uneven: the busiest rank over the mean, reading and decoding; choice: p50 and p99"
)


def line_of(name: str, m: Measures) -> str:
    return (
        f"{name:<16.16} {m.ttft_mean_s:>10.3f} {m.ttft_p50_s:>8.3f} {m.ttft_p99_s:>8.3f} {m.itl_p50_s * 1e3:>8.2f} "
        f"{m.itl_p99_s * 1e3:>8.2f} {m.good_share:>6.1%} {m.goodput:>8.2f} {m.hit_rate:>6.1%} "
        f"{m.read_imbalance:>5.2f}, {m.decode_imbalance:<5.2f} {m.choice_p50_us:>5.0f}, {m.choice_p99_us:<5.0f}"
    )


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Medians over the seeds, load by load."""
    for load, by_policy in grouped(rows):
        ideal = over_seeds([each for every in by_policy.values() for each in every]).ideal_hit_rate
        seeds = max(map(len, by_policy.values()))
        yield f"\n{load.name}: {load.rate:.3g} requests/s, {seeds} seed(s); an endless cache would have {ideal:.1%}"
        yield HEAD
        for policy, each in by_policy.items():
            yield line_of(policy, over_seeds(each))
    yield f"\n{NOTES}"


def warnings(rows: Iterable[Row]) -> Iterator[str]:
    """What makes figures doubtful."""
    faults: dict[str, int] = {}
    for row in rows:
        faults[row.policy] = faults.get(row.policy, 0) + row.measures.at_fault
    for policy, count in faults.items():
        if count:
            yield f"{policy} failed {count:.0f} times, and LeastLoaded chose in its place"


def grouped(rows: Iterable[Row]) -> list[tuple[Load, dict[str, list[Measures]]]]:
    found: dict[Load, dict[str, list[Measures]]] = {}
    for row in rows:
        found.setdefault(row.load, {}).setdefault(row.policy, []).append(row.measures)
    return list(found.items())


def as_tree(setting: Setting, capacity: float, rows: Iterable[Row]) -> dict[str, Any]:
    """For JSON. `capacity`: requests a second; 0: it was not measured."""
    return {
        "trace": setting.trace.name,
        "requests": setting.requests,
        "frontends": setting.frontends,
        "pools": [asdict(pool) for pool in setting.pools],
        "slo": asdict(setting.slo),
        "capacity": capacity,
        "rows": [
            {"policy": row.policy, "load": row.load.name, "rate": row.load.rate, "seed": row.seed}
            | asdict(row.measures)
            for row in rows
        ],
    }


def picture(rows: Sequence[Row]) -> str:
    """SVG: a bar is the median of the seeds, with a line from the least to the most."""
    panels: dict[str, dict[str, dict[str, list[float]]]] = {
        "TTFT mean, s": {},
        "TTFT p99, s": {},
        "good requests/s": {},
        "hits, %": {},
    }
    letters: dict[str, str] = {}
    for load, by_policy in grouped(rows):
        for policy, each in by_policy.items():
            letter = letters.setdefault(policy, chr(ord("a") + len(letters)))
            values = (
                [m.ttft_mean_s for m in each],
                [m.ttft_p99_s for m in each],
                [m.goodput for m in each],
                [100 * m.hit_rate for m in each],
            )
            for panel, of_seeds in zip(panels.values(), values, strict=True):
                panel.setdefault(load.name, {})[letter] = of_seeds
    return bars(panels, {letter: policy for policy, letter in letters.items()}, x_label="load")
