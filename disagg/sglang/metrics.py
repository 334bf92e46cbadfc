"""SGLang's own metrics of an engine, as its processes leave them in files (prometheus_client's way for many processes).

Way:   schedulers -> files in this incarnation's folder -> [read_metrics] -> plane server =frames=> /metrics/engines
In:    `enable_metrics` among the engine's arguments; without it nothing is written, and nothing read
Out:   Prometheus' text, family by family, each sample with the labels that who asks gives, in the place of SGLang's
       `model_name`, which is the model's folder on that machine
Owns:  the files, which end with the incarnation. What SGLang's TokenizerManager would count of every token is off: it
       would take each token the slow way (fast_path.py), and frontends count the same for all engines
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from disagg.plane.messages import MetricFamily

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
FOLDER = "metrics"
MODEL_NAME = re.compile(r'(?<=[{,])model_name="(?:[^"\\]|\\.)*",?')
BYTES_MAX = 4 << 20  # of an engine's text; families beyond it are left out, the largest first


def open_metrics(scratch: Path) -> None:
    """Before SGLang makes its first metric, and its processes."""
    folder = scratch / FOLDER
    folder.mkdir(exist_ok=True)
    os.environ[VARIABLE] = str(folder)
    from prometheus_client import values

    # It was chosen when prometheus_client was imported, which a zygote did before this folder was known.
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]


def read_metrics(scratch: Path, labels: str) -> list[MetricFamily]:
    """`labels`: `name="value",…`, put before those that SGLang gives. Takes some 10 ms: not on the event loop."""
    folder = scratch / FOLDER
    if not folder.is_dir():
        return []
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return bounded(families(generate_latest(registry).decode(), labels))


def families(text: str, labels: str) -> list[MetricFamily]:
    found: list[MetricFamily] = []
    head: list[str] = []
    samples: list[str] = []

    def end() -> None:
        if samples:
            found.append(MetricFamily("".join(head), "".join(samples)))

    for line in text.splitlines(keepends=True):
        if line.startswith("# HELP"):
            end()
            head, samples = [line], []
        elif line.startswith("#"):
            head.append(line)
        else:
            samples.append(labelled(line, labels))
    end()
    return found


def labelled(sample: str, labels: str) -> str:
    name, brace, rest = MODEL_NAME.sub("", sample).partition("{")
    if not brace:
        name, _, value = sample.partition(" ")
        return f"{name}{{{labels}}} {value}"
    return f"{name}{{{labels}{'' if rest.startswith('}') else ','}{rest}"


def bounded(every: list[MetricFamily], bytes_max: int = BYTES_MAX) -> list[MetricFamily]:
    """In the same order."""
    left, kept = bytes_max, set()
    for index, family in sorted(enumerate(every), key=lambda each: len(each[1].samples)):
        left -= len(family.head) + len(family.samples)
        if left < 0:
            break
        kept.add(index)
    return [family for index, family in enumerate(every) if index in kept]
