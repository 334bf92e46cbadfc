"""SGLang's own metrics: from the files of its processes to text with our labels, bounded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from disagg.plane.messages import MetricFamily
from disagg.sglang.metrics import bounded, families, labelled, read_metrics

OURS = 'engine="decode-0",role="decode"'
TEXT = """# HELP sglang:a A: with {braces} and "quotes"
# TYPE sglang:a gauge
sglang:a{model_name="/home/me/a \\"model\\", or so",tp_rank="0"} 1.5
sglang:a{tp_rank="1",model_name="/home/me"} 2.0
# HELP sglang:b Without a label
# TYPE sglang:b counter
sglang:b_total 7.0
# HELP sglang:none Without a sample
# TYPE sglang:none counter
"""
# As an engine is started: imported before it is known where the files go, then forked.
PROGRAM = """
import os, sys, pathlib
import prometheus_client
from disagg.sglang.metrics import open_metrics, read_metrics
folder = pathlib.Path(sys.argv[1])
open_metrics(folder)
gauge = prometheus_client.Gauge("sglang:running", "r", ["tp_rank"], multiprocess_mode="mostrecent")
if (child := os.fork()) == 0:
    gauge.labels(tp_rank="0").set(3)
    os._exit(0)
os.waitpid(child, 0)
print(read_metrics(folder, 'engine="decode-0"')[0].samples)
"""


def test_each_sample_has_our_labels_and_no_folder_of_the_machine() -> None:
    found = families(TEXT, OURS)
    assert [family.samples for family in found] == [
        f'sglang:a{{{OURS},tp_rank="0"}} 1.5\nsglang:a{{{OURS},tp_rank="1",}} 2.0\n',
        f"sglang:b_total{{{OURS}}} 7.0\n",
    ]
    assert found[0].head == "".join(TEXT.splitlines(keepends=True)[:2])
    assert labelled("a{} 1\n", OURS) == f"a{{{OURS}}} 1\n"


def test_what_a_forked_process_counts_is_read(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == 'sglang:running{engine="decode-0",tp_rank="0"} 3.0'


def test_an_engine_without_them_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path, OURS) == []


def test_the_largest_families_are_left_out_first() -> None:
    every = [MetricFamily("", "x" * size) for size in (50, 10, 30, 20)]
    assert [len(family.samples) for family in bounded(every, 60)] == [10, 30, 20]
    assert bounded(every, 5) == []
