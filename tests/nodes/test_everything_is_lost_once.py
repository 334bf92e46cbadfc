"""Real engines, two models on two nodes, two frontends, etcd, a detached controller, and clients that ask all the time:
a frontend, the controller, etcd, a raylet, the Ray head and an engine are killed, one after the other.

The tests share one deployment and its clients; the last one counts what those have seen.
"""

from __future__ import annotations

import functools
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import BIN, GCS_REMEMBERS, PORT, Cluster, cluster, listed
from deployment import Deployment
from door import door
from etcd_here import Etcd, etcd
from network import Node, ray_join
from streams import Stream, wait_until

CONFIG = Path(__file__).with_name("two-models.yaml")
MODELS = ("chat", "tiny")
CPUS = 2
LEASE_S = 10.0
TOKENS, PAUSE_S = 48, 1.0  # two cores do all of it
PROMPT = [7 + (7919 * at) % 300 for at in range(40)]
BACK_S = 150.0  # an engine's start on two cores that answer meanwhile
until = functools.partial(wait_until, pause_s=0.3)  # a look at the registry is a process
ENGINES = {f"{kind}-{number}" for kind in ("chat.prefill", "chat.decode", "tiny.aggregated") for number in (0, 1)}


class Client(threading.Thread):
    """Asks one model all the time, and asks anew where a stream has failed."""

    def __init__(self, at: Deployment, model: str) -> None:
        super().__init__(daemon=True)
        self.at, self.model = at, model
        self.streams: list[Stream] = []
        self.failed: list[Stream] = []
        self.failed_twice: list[Stream] = []
        self.ends = threading.Event()
        self.start()

    def run(self) -> None:
        has_failed = False
        while not self.ends.wait(PAUSE_S):
            stream = Stream(self.at, PROMPT, TOKENS, model=self.model)
            self.streams.append(stream)
            stream.join(120)
            if stream.usage:
                has_failed = False
                continue
            self.failed.append(stream)
            if has_failed:
                self.failed_twice.append(stream)
            has_failed = True


@dataclass
class Scene:
    on: Cluster
    worker: Node
    members: list[Etcd]
    at: Deployment
    store: Node
    clients: list[Client] = field(default_factory=list)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)  # end with their nodes

    def disagg(self, *words: str, limit_s: float = 300) -> str:
        return self.on.nodes[0].run(str(BIN / "disagg"), *words, environment=self.on.environment, limit_s=limit_s)

    def listed(self) -> dict[str, Any]:
        return listed(self.store, ",".join(each.endpoint for each in self.members))

    def lives(self) -> dict[str, int]:
        """Of engines that are ready."""
        return {e["id"]: e["incarnation"] for e in self.listed()["engines"] if e["state"] == "ready"}

    def frontends(self) -> dict[int, int]:
        """Of those that listen: a number, a process."""
        return {each["number"]: each["pid"] for each in self.listed()["frontends"] if each["url"]}

    def engine_on(self, node: Node, kind: str) -> dict[str, Any]:
        engines = self.at.get("/disagg/status")["engines"]
        return next(e for e in engines if e["node"] == node.address and e["id"].startswith(kind))

    def failed(self) -> list[Stream]:
        return [stream for client in self.clients for stream in client.failed]

    def more_failed(self, before: int) -> list[tuple[Any, ...]]:
        return [(each.status, each.error, each.failure, each.events[-1:]) for each in self.failed()[before:]]

    def amid_a_stream(self) -> str:
        """The id of a request that has had some tokens, or nothing."""
        now = [client.streams[-1] for client in self.clients if client.streams]
        return next((each.request_id for each in now if each.is_alive() and 3 < len(each.events) < TOKENS // 2), "")

    def answered(self) -> int:
        return sum(bool(stream.usage) for client in self.clients for stream in client.streams)

    def goes_on(self) -> None:
        """Each client gets two more answers."""
        before = [len(client.streams) for client in self.clients]
        until(lambda: all(len(c.streams) > n + 2 for c, n in zip(self.clients, before, strict=True)), 60)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("everything")
    more = {"DISAGG_SECRET": secrets.token_hex(32), **GCS_REMEMBERS}
    started: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        stack.callback(lambda: [each.wait() for each in started])
        on = stack.enter_context(cluster(1, cpus=CPUS, more=more, beside=2))
        (head,), (worker, store) = on.nodes, on.beside
        members = stack.enter_context(etcd(folder, host=store.address, within=store.command()))
        at = Deployment(None, f"http://127.0.0.1:{stack.enter_context(door(head.namespace, PORT))}", folder / "log")  # type: ignore[arg-type]
        made = Scene(on, worker, members, at, store, started=started)
        endpoints = f"registry.endpoints=[{','.join(each.endpoint for each in members)}]"
        print(made.disagg("serve", str(CONFIG), "--set", endpoints, "--detach"))
        stack.callback(lambda: print(made.disagg("stop", "--yes", "--wait")))
        ray_join(worker, head, on.environment, CPUS)
        print(made.disagg("scale", "chat.prefill=2", "chat.decode=2", "tiny.aggregated=2", "--wait"))
        assert {e["id"]: e["node"] for e in made.listed()["engines"]} == {
            engine_id: (head, worker)[int(engine_id[-1])].address for engine_id in ENGINES
        }
        made.clients = [Client(at, model) for model in MODELS for _ in range(2)]
        stack.callback(lambda: [client.join(130) for client in made.clients])
        stack.callback(lambda: [client.ends.set() for client in made.clients])
        made.goes_on()
        yield made


def test_a_frontend_is_killed(scene: Scene) -> None:
    before = scene.frontends()
    assert len(before) == 2
    while not (request_id := scene.amid_a_stream()):
        time.sleep(0.05)
    number = request_id[:4]  # of its frontend
    killed = before[int(number)]
    os.kill(killed, signal.SIGKILL)
    back_s = until(lambda: len(now := scene.frontends()) == 2 and killed not in now.values(), BACK_S)
    scene.goes_on()
    through_it = [stream for stream in scene.failed() if stream.request_id[:4] in (number, "")]
    print(f"back after {back_s:.1f} s; {len(through_it)} streams of {len(scene.clients)} clients ended with it")
    assert scene.failed() == through_it
    assert 0 < len(through_it) <= len(scene.clients)


def test_the_controller_is_killed(scene: Scene) -> None:
    lives, failed = scene.lives(), len(scene.failed())
    (before,) = scene.listed()["controller"]
    os.kill(int(before.rpartition(":")[2]), signal.SIGKILL)
    back_s = until(lambda: scene.listed()["controller"] not in ([], [before]) and scene.lives() == lives, BACK_S)
    scene.goes_on()
    print(f"another one after {back_s:.1f} s")
    assert scene.more_failed(failed) == []


def test_etcd_is_away_for_longer_than_the_lease(scene: Scene) -> None:
    lives, failed = scene.lives(), len(scene.failed())
    for member in scene.members:
        member.kill()
    time.sleep(1.5 * LEASE_S)
    scene.goes_on()
    for member in scene.members:
        member.start()
    back_s = until(lambda: scene.lives() == lives and len(scene.frontends()) == 2, BACK_S)
    scene.goes_on()
    print(f"the registry is whole {back_s:.1f} s after etcd is back")
    assert scene.more_failed(failed) == []


def test_a_raylet_is_killed(scene: Scene) -> None:
    lives, failed = scene.lives(), len(scene.failed())
    raylet = scene.on.raylet(scene.worker)
    assert raylet is not None
    raylet.kill()
    scene.goes_on()
    scene.on.rejoin(scene.worker)
    there = {engine_id for engine_id in ENGINES if engine_id.endswith("1")}
    back_s = until(lambda: (now := scene.lives()).keys() == ENGINES and all(now[e] > lives[e] for e in there), BACK_S)
    scene.goes_on()
    print(f"its engines are back {back_s:.1f} s after the node")
    assert scene.more_failed(failed) == []


def test_the_ray_head_is_killed_and_comes_back_and_then_an_engine_dies(scene: Scene, tmp_path: Path) -> None:
    lives, failed = scene.lives(), len(scene.failed())
    head = scene.on.nodes[0]
    gcs = next(p for p in map(psutil.Process, head.pids()) if p.name() == "gcs_server")
    command, environment = gcs.cmdline(), gcs.environ()
    gcs.kill()
    scene.goes_on()
    scene.started.append(head.start(*command, log=tmp_path / "gcs.log", environment=environment))
    scene.goes_on()
    assert scene.lives() == lives
    before = scene.engine_on(head, "chat.decode")
    os.kill(before["pids"]["host"], signal.SIGKILL)
    back_s = until(lambda: scene.lives() == {**lives, before["id"]: before["incarnation"] + 1}, BACK_S)
    scene.goes_on()
    print(f"a decode engine that was killed then is back after {back_s:.1f} s")
    assert scene.more_failed(failed) == []


def test_no_answer_was_wrong_and_whoever_asked_again_got_one(scene: Scene) -> None:
    print(f"{scene.answered()} streams whole, {len(scene.failed())} failed")
    for model in MODELS:
        streams = [each for client in scene.clients if client.model == model for each in client.streams if each.usage]
        assert len({tuple(stream.whole(1)[0]) for stream in streams}) == 1
    assert not [stream for client in scene.clients for stream in client.failed_twice]
    assert len(scene.failed()) <= len(scene.clients)
