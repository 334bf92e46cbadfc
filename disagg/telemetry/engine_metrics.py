"""What engines count themselves, as one text for Prometheus.

Way:   GET /metrics/engines -> Service -> each engine's host =frames=> [text_of] -> Prometheus
In:    of each engine its families (disagg/sglang/metrics.py), or None where it has not answered in time
Out:   Prometheus' text format: a family once, with the samples of all engines; BYTES_MAX at the most. First
       `disagg_engine_metrics`: 1 for an engine whose metrics are there
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from disagg.plane.messages import MetricFamily

BYTES_MAX = 64 << 20  # engines beyond it are left out, whole
HEAD = """# HELP disagg_engine_metrics 1: the engine's own metrics are here; 0: it has none, or has not answered
# TYPE disagg_engine_metrics gauge
"""


class Told(NamedTuple):
    labels: str  # as in a sample, without braces
    families: Sequence[MetricFamily] | None


def labels_of(engine: str, role: str, model: str) -> str:
    said = {"engine": engine, "role": role, "model": model, "model_name": model}  # the last: as SGLang's boards ask
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in said.items())


def size_of(families: Iterable[MetricFamily]) -> int:
    return sum(len(family.samples) for family in families)


def text_of(engines: Iterable[Told], bytes_max: int = BYTES_MAX) -> bytes:
    heads: dict[str, list[str]] = {}
    ours, left = [HEAD], bytes_max
    for told in engines:
        families = told.families or ()
        size = size_of(families)
        is_there = bool(families) and size <= left
        ours.append(f"disagg_engine_metrics{{{told.labels}}} {int(is_there)}\n")
        if is_there:
            left -= size
            for family in families:
                heads.setdefault(family.head, []).append(family.samples)
    return "".join([*ours, *(part for head, samples in heads.items() for part in (head, *samples))]).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
