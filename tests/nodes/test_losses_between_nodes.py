"""What is lost between nodes, as clients see it: two simulated engines on two Ray nodes, etcd's members on a third, and
on a fourth, where nothing else of the deployment is, a frontend by `disagg frontend`.

The tests share one deployment and go from the smallest loss to the largest.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cluster import GCS_REMEMBERS, Cluster, cluster, listed, running
from deployment import Deployment
from etcd_here import etcd
from network import Node
from streams import Stream, wait_until

from disagg.simulated_engine.tokens import answer

CONFIG = Path(__file__).with_name("two-aggregated.yaml")
LEASE_S = 3.0
TOKENS = 600  # of a stream: 6 s
ENGINES = {"aggregated-0", "aggregated-1"}
BACK_S = 60.0


@dataclass
class Scene:
    on: Cluster
    home: Deployment  # by the controller's frontend
    away: Deployment  # by the one on a host of its own
    store: Node
    far: Node
    endpoints: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)  # end with their nodes

    def listed(self) -> dict[str, Any]:
        return listed(self.store, self.endpoints)

    def frontends(self) -> list[bool]:
        """Of each whether it is one elsewhere."""
        return sorted("host" in each for each in self.listed()["frontends"] if each["url"])

    def engine_on(self, node: Node) -> dict[str, Any]:
        return next(e for e in self.home.get("/disagg/status")["engines"] if e["node"] == node.address)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("losses")
    more = {"DISAGG_SECRET": secrets.token_hex(32), **GCS_REMEMBERS}
    started: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        stack.callback(lambda: [each.wait() for each in started])
        on = stack.enter_context(cluster(2, cpus=1, more=more, beside=2))
        store, far = on.beside
        members = stack.enter_context(etcd(folder, members=3, host=store.address, within=store.command()))
        endpoints = ",".join(each.endpoint for each in members)
        home = stack.enter_context(
            running(on.nodes[0], on.environment, "serve", str(CONFIG), "--set", f"registry.endpoints=[{endpoints}]")
        )
        away = stack.enter_context(
            running(far, on.environment, "frontend", "--registry", f"etcd:{endpoints}", "--deployment", "losses")
        )
        made = Scene(on, home, away, store, far, endpoints, started)
        assert {e["node"] for e in home.get("/disagg/status")["engines"]} == {node.address for node in on.nodes}
        yield made


def _open(at: Deployment, count: int) -> list[Stream]:
    streams = [Stream(at, [5, 6, number], TOKENS) for number in range(count)]
    wait_until(lambda: all(len(stream.events) > 3 for stream in streams), 20)
    return streams


def _all_right(streams: list[Stream]) -> float:
    """The longest pause between two tokens, in seconds."""
    for number, stream in enumerate(streams):
        assert stream.whole(60)[0] == answer([5, 6, number], TOKENS, ignore_eos=True)
    pauses = []
    for stream in streams:
        times = [at for at, _ in stream.events]
        pauses.append(max(b - a for a, b in itertools.pairwise(times)))
    return max(pauses)


def _answers(at: Deployment) -> float:
    """Seconds that a short request takes."""
    began = time.monotonic()
    ids = at.complete([5, 6, 7], max_tokens=5, ignore_eos=True, return_token_ids=True)["choices"][0]["token_ids"]
    assert ids == answer([5, 6, 7], 5, ignore_eos=True)
    return time.monotonic() - began


def _tries(scene: Scene, streams: list[Stream]) -> int:
    """The most that one of them took."""
    return max(int(scene.away.timeline(stream.request_id, until="usage")["tries"]) for stream in streams)


def _reached(at: Deployment) -> set[str]:
    """The engines that two streams at a time are on."""
    streams = [Stream(at, [5, 6, number], 30) for number in range(2)]
    for stream in streams:
        stream.join(20)
    return {at.timeline(stream.request_id, until="usage")["decode"].partition("#")[0] for stream in streams}


def test_each_frontend_knows_the_other(scene: Scene) -> None:
    assert scene.frontends() == [False, True]
    for at, other in (scene.away, scene.home), (scene.home, scene.away):
        request_id = at.complete([5, 6, 7], max_tokens=3)["request_id"]
        assert other.get(f"/disagg/requests/{request_id}")["id"] == request_id
    stream = Stream(scene.away, [5, 6, 9], 4000)
    wait_until(lambda: len(stream.events) > 3, 20)
    cancelled = httpx.delete(f"{scene.home.url}/v1/requests/{stream.request_id}", timeout=10, trust_env=False)
    assert cancelled.status_code == 200
    stream.join(10)
    assert stream.error is not None


def test_a_frontend_s_host_is_cut_off_from_etcd_for_longer_than_its_lease(scene: Scene) -> None:
    streams = _open(scene.away, 4)
    scene.far.lose(scene.store)
    began = time.monotonic()
    try:
        took_s = wait_until(lambda: scene.frontends() == [False], LEASE_S + 4)
        slowest_s = 0.0
        while time.monotonic() - began < 2 * LEASE_S:
            slowest_s = max(slowest_s, _answers(scene.away))
    finally:
        scene.far.find(scene.store)
    back_s = wait_until(lambda: scene.frontends() == [False, True], 20)
    pause_s = _all_right(streams)
    print(f"gone from etcd after {took_s:.1f} s, back {back_s:.1f} s; pause {pause_s:.1f} s, slowest {slowest_s:.1f} s")
    assert pause_s < 1


def test_a_frontend_s_host_is_cut_off_from_an_engine_s_node(scene: Scene) -> None:
    worker = scene.on.nodes[1]
    streams = _open(scene.away, 4)
    scene.far.lose(worker)
    try:
        pause_s = _all_right(streams)
        slowest_s = max(_answers(scene.away) for _ in range(5))
        assert _answers(scene.home) < 5
    finally:
        scene.far.find(worker)
    back_s = wait_until(lambda: _reached(scene.away) == ENGINES, 20)
    print(f"pause {pause_s:.1f} s, slowest meanwhile {slowest_s:.1f} s, back {back_s:.1f} s")
    assert _tries(scene, streams) == 2
    assert [e["incarnation"] for e in scene.home.get("/disagg/status")["engines"]] == [1, 1]


def test_a_raylet_is_killed(scene: Scene) -> None:
    worker = scene.on.nodes[1]
    before = scene.engine_on(worker)
    streams = _open(scene.away, 4)
    raylet = scene.on.raylet(worker)
    assert raylet is not None
    raylet.kill()
    pause_s = _all_right(streams)
    slowest_s = max(_answers(scene.away) for _ in range(5))
    print(f"pause {pause_s:.1f} s, slowest afterwards {slowest_s:.1f} s")
    assert _tries(scene, streams) == 2
    scene.on.rejoin(worker)
    back_s = wait_until(
        lambda: scene.home.all_ready() and scene.engine_on(worker)["incarnation"] > before["incarnation"], BACK_S
    )
    print(f"back after {back_s:.1f} s")


def test_the_ray_head_is_killed_and_comes_back(scene: Scene, tmp_path: Path) -> None:
    """Its GCS. Afterwards an engine that dies is started again, which takes a Ray that knows its actors."""
    head = scene.on.nodes[0]
    gcs = next(p for p in map(psutil.Process, head.pids()) if p.name() == "gcs_server")
    command, environment = gcs.cmdline(), gcs.environ()
    streams = _open(scene.away, 4)
    gcs.kill()
    pause_s = _all_right(streams)
    slowest_s = max(_answers(scene.away) for _ in range(5))
    print(f"pause {pause_s:.1f} s, slowest while there is none {slowest_s:.1f} s")
    assert scene.home.all_ready()
    again = head.start(*command, log=tmp_path / "gcs.log", environment=environment)
    scene.started.append(again)
    before = scene.engine_on(head)
    os.kill(before["pids"]["host"], signal.SIGKILL)
    back_s = wait_until(
        lambda: scene.home.all_ready() and scene.engine_on(head)["incarnation"] > before["incarnation"], BACK_S
    )
    print(f"an engine that was killed then is back after {back_s:.1f} s")
    assert again.poll() is None
    _answers(scene.away)
