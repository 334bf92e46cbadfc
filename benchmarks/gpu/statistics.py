"""Percentiles and what is told of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """By interpolation between the two nearest; `values` need not be sorted, and there is one at least."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def latencies(seconds: Iterable[float]) -> dict[str, float]:
    """In milliseconds. Empty where there are none."""
    values_ms = [each * 1e3 for each in seconds]
    if not values_ms:
        return {}
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(percentile(values_ms, share), 3) for name, share in shares.items()} | {"n": len(values_ms)}
