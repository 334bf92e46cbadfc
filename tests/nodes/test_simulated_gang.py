"""A gang of four simulated nodes on four Ray nodes: one dies while serving, one while starting. The whole engine starts
again each time, nothing of it is left anywhere, and others serve on.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cluster import Cluster, all_gone, cluster, job, processes
from deployment import Deployment
from streams import wait_until

CONFIG = Path(__file__).with_name("simulated-gang.yaml")
GANG, BESIDE = "prefill-0", "prefill-1"
DOWN_S = 5.0
BACK_S = 60.0


@pytest.fixture(scope="module")
def four() -> Iterator[Cluster]:
    with cluster(4, cpus=1) as made:
        yield made


@pytest.fixture(scope="module")
def deployment(four: Cluster) -> Iterator[Deployment]:
    with job(four, CONFIG) as made:
        yield made


def test_one_dies_while_serving_and_one_while_starting(deployment: Deployment, four: Cluster) -> None:
    gang, beside = deployment.engine(GANG), deployment.engine(BESIDE)
    assert {member["node"] for member in gang["members"]} == {node.address for node in four.nodes}
    first = processes(gang)
    os.kill(gang["members"][2]["pids"]["host"], signal.SIGKILL)
    wait_until(lambda: all_gone(first), DOWN_S)
    _serves(deployment)

    # Its next life is starting: one of its hosts is killed before all are there.
    second = gang["incarnation"] + 1
    wait_until(lambda: bool(_hosts(second)), BACK_S)
    os.kill(_hosts(second)[0], signal.SIGKILL)
    wait_until(lambda: not _hosts(second), BACK_S, lambda: _hosts(second))
    _serves(deployment)

    wait_until(
        lambda: deployment.all_ready() and deployment.engine(GANG)["incarnation"] > second,
        BACK_S,
        lambda: deployment.engine(GANG),
    )
    assert deployment.engine(BESIDE)["incarnation"] == beside["incarnation"]
    assert not any(map(_hosts, range(1, second + 1)))
    assert len(_hosts(deployment.engine(GANG)["incarnation"])) == 4
    _serves(deployment)


def _serves(deployment: Deployment) -> None:
    for _ in range(4):
        body = {"model": "smollm2", "prompt": "one two three", "max_tokens": 4}
        answer = httpx.post(f"{deployment.url}/v1/completions", json=body, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text


def _hosts(incarnation: int) -> list[int]:
    """Of the gang, on whatever node."""
    folder = re.compile(rf"/{GANG}(\.\d)?-{incarnation}/spec\.json")
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if folder.search(Path(f"/proc/{entry}/cmdline").read_text()):
                found.append(int(entry))
    return found
