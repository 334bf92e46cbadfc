"""A DeepSeek-V3 in small over two nodes, submitted as a job: the right tokens on all four pairs of ranks; and when a
part of it dies or is cut off, all of the engine goes at once, and comes back when it can.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import PORT, Cluster, all_gone, job, processes
from deployment import Deployment
from moe import FOUR_PAIRS, answer, way_of
from streams import wait_until

from disagg.sglang.plugins.faults import HELD

CONFIG = Path(__file__).parents[2] / "configs" / "deepseek-tiny-2nodes.yaml"
DOWN_S = 5.0  # from what happened until nothing is left of the engine, on either node
BY_LOAD = "routing.policy=least_loaded"  # four requests at a time go to four pairs
ERROR_S = 20.0  # deadlines.no_pair_s and a little
BACK_S = 120.0
NAME = "tiny-dsv3"
DASHBOARD_PORT = 8265
ENGINES_PORTS = range(20000, 32000)


@pytest.fixture(scope="module")
def deployment(two: Cluster) -> Iterator[Deployment]:
    with job(two, CONFIG, "health.canary_s=3600", "deadlines.transfer_s=120", BY_LOAD) as made:
        yield made


def test_each_engine_lies_on_both_nodes(deployment: Deployment, two: Cluster) -> None:
    for engine in ("prefill-0", "decode-0"):
        assert {member["node"] for member in deployment.engine(engine)["members"]} == {n.address for n in two.nodes}


def test_beyond_its_own_address_a_node_opens_what_the_document_says(deployment: Deployment, two: Cluster) -> None:
    """docs/deploy.md, Ports: the clients' way in is loopback's here, and only Ray listens on all addresses."""
    engines_ports: set[int] = set()
    for node in two.nodes:
        listening = node.listening()
        assert {at for at, port, _ in listening if port in (PORT, DASHBOARD_PORT)} <= {"127.0.0.1"}
        engines_ports |= {port for at, port, _ in listening if at == node.address and port in ENGINES_PORTS}
        elsewhere = {(port, program) for at, port, program in listening if at not in ("127.0.0.1", "::1", node.address)}
        others = [each for each in elsewhere if not is_rays(each[1])]
        assert len(others) <= 1, others
        assert all("disagg serve" in program for _, program in others), "the driver, as one of Ray's processes"
    assert len(engines_ports) > 5, "the probe sees nothing"


def is_rays(program: str) -> bool:
    words = program.split()[:4]
    return words[0].startswith("ray::") or "ray.util.client.server" in words or any("/ray/" in word for word in words)


def test_all_four_pairs_of_ranks_give_the_right_tokens(
    deployment: Deployment, slow_file: Path, expected: list[list[int]]
) -> None:
    slow_file.write_text(HELD)
    with ThreadPoolExecutor(len(FOUR_PAIRS)) as pool:
        answers, pairs = [], set()
        for asked in FOUR_PAIRS:
            answers.append(pool.submit(answer, deployment, NAME, asked))
            way = way_of(deployment, len(asked[0]))
            pairs.add((way.prefill[1], way.decode[1]))
        slow_file.unlink()
        assert [each.result(120) for each in answers] == expected
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_member_that_is_killed_takes_its_engine_with_it(deployment: Deployment, expected: list[list[int]]) -> None:
    before = deployment.engine("decode-0")
    whole, other = processes(before), processes(deployment.engine("prefill-0"))
    os.kill(before["members"][1]["pids"]["host"], signal.SIGKILL)
    took_s = wait_until(lambda: all_gone(whole), DOWN_S)
    assert not all_gone(other), "the prefill engine serves on"
    print(f"a member killed: its engine was gone after {took_s:.1f} s")
    _comes_back(deployment, expected, decode=before["incarnation"])


def test_a_raylet_that_is_killed(deployment: Deployment, two: Cluster, expected: list[list[int]]) -> None:
    before = {name: deployment.engine(name) for name in ("prefill-0", "decode-0")}
    whole = processes(before["prefill-0"]) | processes(before["decode-0"])
    raylet = two.raylet(two.nodes[1])
    assert raylet is not None
    raylet.kill()
    took_s = wait_until(lambda: all_gone(whole), DOWN_S)
    print(f"a raylet killed: both engines were gone after {took_s:.1f} s")
    _is_refused_in_words(deployment)
    two.rejoin(two.nodes[1])
    _comes_back(
        deployment,
        expected,
        prefill=before["prefill-0"]["incarnation"],
        decode=before["decode-0"]["incarnation"],
    )


def test_a_network_partition(deployment: Deployment, two: Cluster, expected: list[list[int]]) -> None:
    before = {name: deployment.engine(name) for name in ("prefill-0", "decode-0")}
    whole = processes(before["prefill-0"]) | processes(before["decode-0"])
    away = two.nodes[1]
    away.cut()
    try:
        took_s = wait_until(lambda: all_gone(whole), DOWN_S)
        print(f"a node cut off: both engines were gone, on both sides, after {took_s:.1f} s")
        _is_refused_in_words(deployment)
    finally:
        away.mend()
    if two.raylet(away) is None:  # Ray gave the node up meanwhile
        two.rejoin(away)
    _comes_back(
        deployment,
        expected,
        prefill=before["prefill-0"]["incarnation"],
        decode=before["decode-0"]["incarnation"],
    )


def _is_refused_in_words(deployment: Deployment) -> None:
    """No engine is left: a typed error, in time."""
    began = time.monotonic()
    body = {"model": NAME, "prompt": [1, 2, 3], "max_tokens": 2}
    refused = httpx.post(f"{deployment.url}/v1/completions", json=body, timeout=60, trust_env=False)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"]
    assert time.monotonic() - began < ERROR_S


def _comes_back(deployment: Deployment, expected: list[list[int]], **incarnations: int) -> None:
    def is_back() -> bool:
        engines = {role: deployment.engine(f"{role}-0") for role in incarnations}
        return deployment.all_ready() and all(engines[role]["incarnation"] > n for role, n in incarnations.items())

    took_s = wait_until(is_back, BACK_S, lambda: _told(deployment))
    print(f"back after {took_s:.1f} s")
    asked, right = FOUR_PAIRS[0], expected[0]
    assert answer(deployment, NAME, asked) == right


def _told(deployment: Deployment) -> list[Any]:
    return [(e["id"], e["state"], e["detail"]) for e in deployment.get("/disagg/status")["engines"]]
