"""A Ray cluster over nodes of this machine, and deployments submitted to it as jobs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from deployment import Deployment
from door import door
from network import Node, nodes, ray_join, ray_start

BIN = Path(sys.executable).parent
SUBMIT_S = 60.0
READY_S = 240.0
PORT = 8000

# So that a head whose GCS comes back knows what it knew.
GCS_REMEMBERS = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": "/dev/shm/gcs"}
Processes = dict[int, float]  # pid -> when it was made


@dataclass
class Cluster:
    nodes: Sequence[Node]
    environment: dict[str, str]
    cpus: float
    beside: Sequence[Node] = ()  # hosts without Ray

    def rejoin(self, node: Node) -> None:
        """Its raylet is dead, or has given up."""
        for pid in node.pids():
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()
        ray_join(node, self.nodes[0], self.environment, self.cpus)

    def raylet(self, node: Node) -> psutil.Process | None:
        for pid in node.pids():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.name() == "raylet":
                    return process
        return None


@contextlib.contextmanager
def cluster(count: int, cpus: float, more: dict[str, str] | None = None, beside: int = 0) -> Iterator[Cluster]:
    with nodes(count + beside) as hosts:
        made = hosts[:count]
        own = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "no_proxy": "*", **(more or {})}
        environment = ray_start(made, cpus, more=own) | {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265"}
        yield Cluster(made, environment, cpus, hosts[count:])


@contextlib.contextmanager
def job(on: Cluster, config: Path, *sets: str) -> Iterator[Deployment]:
    """`ray job submit … -- disagg serve CONFIG`, from its first READY until `ray job stop`."""
    head = on.nodes[0]
    name = f"disagg-{time.monotonic_ns()}"
    submit = [str(BIN / "ray"), "job", "submit", "--submission-id", name, "--working-dir", str(config.parent)]
    serve = ["disagg", "serve", config.name, *(word for each in sets for word in ("--set", each))]
    with tempfile.TemporaryDirectory() as folder, door(head.namespace, PORT) as port:
        log = Path(folder) / "job.log"
        _until_jobs_are_taken(on)
        process = head.start(*submit, "--", *serve, log=log, environment=on.environment)
        deployment = Deployment(process, f"http://127.0.0.1:{port}", log)
        try:
            began = time.monotonic()
            while not (deployment.is_ready() and deployment.all_ready()):
                assert process.poll() is None, f"it ended:\n{deployment.said()}"
                assert time.monotonic() - began < READY_S, f"not ready:\n{deployment.said()}"
                time.sleep(0.5)
            yield deployment
        finally:
            head.run(str(BIN / "ray"), "job", "stop", name, environment=on.environment)
            process.kill()
            process.wait()


def _until_jobs_are_taken(on: Cluster) -> None:
    """A cluster that has just started has no agent that takes jobs yet, and says so."""
    until = time.monotonic() + SUBMIT_S
    submit = on.nodes[0].command(str(BIN / "ray"), "job", "submit", "--", "true")
    while True:
        done = subprocess.run(submit, env=os.environ | on.environment, capture_output=True, text=True, timeout=SUBMIT_S)
        if done.returncode == 0:
            return
        assert "No available agent" in done.stderr, done.stderr[-3000:]
        assert time.monotonic() < until, done.stderr[-3000:]
        time.sleep(1)


@contextlib.contextmanager
def running(node: Node, environment: dict[str, str], *words: str) -> Iterator[Deployment]:
    """`disagg WORDS` in the node, from when a frontend there is ready until SIGTERM."""
    with tempfile.TemporaryDirectory() as folder, door(node.namespace, PORT) as port:
        log = Path(folder) / "log"
        process = node.start(str(BIN / "disagg"), *words, log=log, environment=environment)
        made = Deployment(process, f"http://127.0.0.1:{port}", log)
        try:
            began = time.monotonic()
            while not made.is_ready():
                assert process.poll() is None, f"it ended:\n{made.said()}"
                assert time.monotonic() - began < READY_S, f"not ready:\n{made.said()}"
                time.sleep(0.2)
            yield made
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()


def listed(beside: Node, endpoints: str) -> dict[str, Any]:
    """The only deployment of a registry in etcd, as somebody in that node sees it."""
    words = ("-m", "disagg.cli.main", "list", "--registry", f"etcd:{endpoints}", "--json")
    found = json.loads(beside.run(sys.executable, *words))
    return dict(found[0]) if found else {"controller": [], "engines": [], "frontends": []}


def processes(engine: dict[str, Any]) -> Processes:
    """Of all of an engine's nodes; the actors are Ray's."""
    found: Processes = {}
    for member in engine["members"] or [engine]:
        for kind, pids in member["pids"].items():
            for pid in pids if isinstance(pids, list) else [pids]:
                if kind != "actor":
                    found[pid] = psutil.Process(pid).create_time()
    return found


def all_gone(of: Processes) -> bool:
    return not any(map(_is_alive, of.items()))


def _is_alive(process: tuple[int, float]) -> bool:
    pid, made_s = process
    try:
        found = psutil.Process(pid)
        return found.create_time() == made_s and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
