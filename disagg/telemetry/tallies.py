"""Counts and durations as plain numbers, told to Prometheus when it asks: a request counts a dozen things, and the
library's own way to each costs more than counting.

Way:   FrontendMetrics -> [Count, Durations] -> prometheus_client, at each GET /metrics
Owns:  the numbers of this process, in one thread: the event loop's. `collect` tells `told`: these, and those of
       other frontends, each by its number where there are several: added up, a sum would fall when one begins anew
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from disagg.telemetry.bounds import FINE

NONE: Mapping[str, str] = MappingProxyType({})
CountTold = list[tuple[tuple[str | int, ...], int]]
DurationsTold = tuple[list[int], float]  # requests by bucket, and seconds in all
FRONTEND = "frontend"  # the label
Frontend = int | None  # its number; None: there is one alone, and no such label


class Count(Collector):
    """A counter for each combination of labels: `by_labels[label, ...] += 1`, where it has any."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, *labels: str) -> None:
        self._name, self._text, self._labels = name, text, labels
        self.by_labels: defaultdict[tuple[str | int, ...], int] = defaultdict(int)
        self.told: list[tuple[Frontend, CountTold]] = []
        registry.register(self)

    @property
    def own(self) -> CountTold:
        return list(self.by_labels.items())

    @property
    def sums(self) -> dict[tuple[str | int, ...], int]:
        """What all frontends tell, by labels."""
        sums: defaultdict[tuple[str | int, ...], int] = defaultdict(int)
        for _, told in self.told:
            for labels, count in told:
                sums[labels] += count
        return sums

    def collect(self) -> Iterator[Metric]:
        has_several = any(frontend is not None for frontend, _ in self.told)
        more = (FRONTEND,) if has_several else ()
        family = CounterMetricFamily(self._name, self._text, labels=(*self._labels, *more))
        for frontend, told in self.told:
            for labels, count in told:
                family.add_metric([*map(str, labels), *([str(frontend)] if has_several else [])], count)
        yield family


class Durations(Collector):
    """A histogram, counted in the buckets of FINE. `bounds_s`: of these, those that are told, each included, without
    infinity."""

    def __init__(self, registry: CollectorRegistry, bounds_s: Sequence[float], name: str, text: str) -> None:
        self._name, self._text, self._shown_s, self._bounds_s = name, text, bounds_s, FINE
        self._counts = [0] * (len(FINE) + 1)
        self._sum_s = 0.0
        self.told: list[tuple[Frontend, DurationsTold]] = [(None, self.own)]
        registry.register(self)

    @property
    def own(self) -> DurationsTold:
        return list(self._counts), self._sum_s

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    def collect(self) -> Iterator[Metric]:
        has_several = any(frontend is not None for frontend, _ in self.told)
        family = HistogramMetricFamily(self._name, self._text, labels=[FRONTEND] if has_several else [])
        for frontend, told in self.told:
            _add(family, [str(frontend)] if has_several else [], [told], self._shown_s)
        yield family

    def family(self, name: str, text: str, bounds_s: Sequence[float], labels: Mapping[str, str] = NONE) -> Metric:
        """What all frontends tell, by another name and with other buckets; each of `bounds_s` is one of FINE."""
        family = HistogramMetricFamily(name, text, labels=list(labels))
        _add(family, list(labels.values()), [told for _, told in self.told], bounds_s)
        return family


def _add(
    family: HistogramMetricFamily, labels: Sequence[str], told: Sequence[DurationsTold], bounds_s: Sequence[float]
) -> None:
    counts = [sum(each) for each in zip(*(counts for counts, _ in told), strict=True)]
    below = dict(zip([*FINE, float("inf")], accumulate(counts), strict=True))
    buckets = [(str(float(bound)), below[bound]) for bound in bounds_s] + [("+Inf", below[float("inf")])]
    family.add_metric(labels, buckets, sum(sum_s for _, sum_s in told))
