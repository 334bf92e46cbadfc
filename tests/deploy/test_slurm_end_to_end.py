"""The sbatch script on SLURM itself: two nodes, real engines, an answer, and nothing left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from rendered import deploy
from slurm_cluster import ROOT, SlurmCluster, slurm_cluster

from disagg.cluster.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.nodes, pytest.mark.timeout(200)]
READY_S = 120.0
END_S = 40.0


def test_a_job_over_two_nodes_answers_and_leaves_nothing(tmp_path: Path) -> None:
    port = free_port()
    script = tmp_path / "job.sh"
    path = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}"
    # Two nodes of one machine share its ports: Ray's own two that are not picked freely have to be.
    own_ports = ["--ray-start=--dashboard-agent-listen-port=0", "--ray-start=--metrics-export-port=0"]
    deploy("slurm", "local-cpu", "--cpus-per-node", 1, "--set", f"frontend.port={port}", "--time=5", "--setup", path,
           *own_ports, "-o", script)  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with slurm_cluster() as cluster:
        job = cluster.submit(script)
        wait_until(lambda: is_ready(url), READY_S, cluster, job)
        body = {"model": "smollm2", "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
        assert "Paris" in answer.json()["choices"][0]["text"], answer.text
        engines = httpx.get(f"{url}/disagg/status", timeout=15, trust_env=False).json()["engines"]
        assert {engine["node"] for engine in engines} == {"127.0.0.2", "127.0.0.3"}, "an engine a node"

        cluster.run("scancel", "--batch", "--signal=TERM", job)
        wait_until(lambda: cluster.is_over(job), END_S, cluster)
        assert "disagg serve has ended with 0" in cluster.log.read_text()
        assert of_job(job) == []
        assert cluster.left_in_tmp() == []


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(what: Callable[[], bool], limit_s: float, cluster: SlurmCluster, job: str | None = None) -> None:
    until = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < until, f"not within {limit_s} s\n{cluster.said()}"
        assert job is None or not cluster.is_over(job), f"the job has ended\n{cluster.said()}"
        time.sleep(0.3)


def of_job(job: str) -> list[str]:
    """Processes of the job, wherever they are: all inherit its number."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and f"SLURM_JOB_ID={job}".encode() in Path(f"/proc/{entry}/environ").read_bytes().split(
                b"\0"
            ):
                found.append(f"{entry} {Path(f'/proc/{entry}/cmdline').read_bytes()[:100]!r}")
        except OSError:
            continue
    return found
