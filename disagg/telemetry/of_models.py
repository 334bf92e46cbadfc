"""Metrics of several models as one text: each number with a label that says whose it is.

Way:   FrontendMetrics of each model -> [render] -> GET /metrics
Out:   Prometheus' text format. What is the process's own (OF_PROCESS) stands there once, without the label
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

OF_KEYS = ("disagg_key_requests", "disagg_key_tokens", "disagg_key_refused")
OF_PROCESS = frozenset({"disagg_tasks", "disagg_refused", "disagg_errors", "disagg_trace_spans", *OF_KEYS})


def render(registries: Mapping[str, CollectorRegistry]) -> bytes:
    """By the name of the model."""
    together = CollectorRegistry()
    together.register(_Together(registries))
    return generate_latest(together)


class _Together(Collector):
    def __init__(self, registries: Mapping[str, CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for model, registry in self._registries.items():
            for metric in registry.collect():
                known = metric.name in families
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                if metric.name not in OF_PROCESS:
                    samples = (each._replace(labels={"model": model, **each.labels}) for each in metric.samples)
                    family.samples += samples
                elif not known:
                    family.samples += metric.samples
        return families.values()
